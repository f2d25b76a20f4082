"""A bounded queue of requests, and the one thread that owns the model and answers them.

It answers as many at once as the model's batch has places: after each pass every running answer
passes on what it got.

    queue = Queue(open_model, meter, most_waiting=64)
    queue.start()
    async for event in queue.answer(request): ...

The event loop never waits for the model. Short work such as tokenising is done between two tokens
of an answer.
"""

import asyncio
import contextlib
import gc
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TypeVar

from edge.device.memory import wired
from edge.errors import EdgeError
from edge.generate.decode import LlamaSource
from edge.serve.energy import EnergyMeter
from edge.serve.engine import Engine, ServedModel
from edge.serve.request import End, Event, Refused, Request

# An idle server frees the meter's samples this often.
IDLE_S = 60.0
T = TypeVar("T")


class Busy(Refused):
    """The queue is full, or the server is ending."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, 503)


class _Gone(Exception):
    """Nobody waits for the answer any more."""


class _Job:
    """A request, and the events of its answers on their way to the event loop."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.is_gone = False
        self.answers: Generator[Event | None, None, None]  # once it is begun
        self.events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def put(self, event: Event | Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class Queue:
    """Requests in the order of their arrival; at most `most_waiting` wait for those answered."""

    def __init__(
        self, open_model: Callable[[], ServedModel], energy: EnergyMeter, most_waiting: int
    ):
        self._open_model, self.energy, self.most_waiting = open_model, energy, most_waiting
        self._news = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._short: deque[Callable[[], None]] = deque()
        self._running: list[_Job] = []
        self._is_ending = self._is_closed = False
        self._opened: Future[Engine] = Future()
        self._ended = threading.Event()
        # A daemon: loading cannot be interrupted, and Ctrl-C must not wait for it.
        self._thread = threading.Thread(target=self._live, name="model", daemon=True)

    def start(self) -> None:
        """Loads the model; raises what that raises."""
        self._thread.start()
        self.engine = self._opened.result()
        self.energy.start()

    def close(self) -> None:
        """Ends the answers under way and the thread."""
        self.end()
        with self._news:
            self._is_closed = True
            self._news.notify()
        self._ended.wait()
        self.energy.stop()

    def end(self) -> None:
        """Refuses what waits and what comes; the running answers go on."""
        with self._news:
            self._is_ending = True
            waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            job.put(_ending())

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of requests that are being answered and that wait."""
        return len(self._running), len(self._waiting)

    @property
    def is_alive(self) -> bool:
        return not self._ended.is_set()

    async def answer(self, request: Request) -> AsyncGenerator[Event, None]:
        """The events of a request; closing this frees its place within one token."""
        job = _Job(request)
        self._enter(job, self._waiting)
        try:
            while (event := await job.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, End):
                    event = replace(event, usage=await self.energy.measured(event.usage))
                yield event
        finally:
            self._leave(job)

    async def call(self, work: Callable[[Engine], T]) -> T:
        """The result of short work with the model's tokenizer."""
        done: Future[T] = Future()

        def do() -> None:
            if not done.set_running_or_notify_cancel():  # nobody waits any more
                return
            try:
                done.set_result(work(self.engine))
            except Exception as error:
                done.set_exception(error)

        self._enter(do, self._short)
        return await asyncio.wrap_future(done)

    def _enter(self, item: T, waiting: deque[T]) -> None:
        with self._news:
            if self._is_ending:
                raise _ending()
            if len(waiting) >= self.most_waiting:
                most = self.most_waiting
                raise Busy(f"{most} requests wait already; try again in a moment.")
            waiting.append(item)
            self._news.notify()

    def _leave(self, job: _Job) -> None:
        job.is_gone = True
        with self._news, contextlib.suppress(ValueError):
            self._waiting.remove(job)

    def _live(self) -> None:
        try:
            self._run()
        finally:
            self._ended.set()
        # MLX drops a thread's compiled functions after Python has joined it, which aborts a process
        # that ends meanwhile. A thread that waits ends with the process.
        threading.Event().wait()

    def _run(self) -> None:
        try:
            model = self._open_model()
            engine = Engine(model)
            engine.warm_up()
        except BaseException as error:
            self._opened.set_exception(error)
            return
        gc.freeze()  # what stays; looking through it again would stop answers for milliseconds
        with wired(model.running_bytes):
            self._opened.set_result(engine)
            while self._running or not self._is_closed:
                self._wait()
                self._do_short()
                self._begin(engine)
                self._advance(engine)
        if isinstance(model.source, LlamaSource):
            model.source.close()

    def _wait(self) -> None:
        """Waits for something to do."""
        with self._news:
            is_idle = not self._news.wait_for(
                lambda: self._running or self._waiting or self._short or self._is_closed, IDLE_S
            )
        if is_idle:
            self.energy.read()  # which forgets what the meter has measured

    def _begin(self, engine: Engine) -> None:
        """Begins the answers to requests that wait, as many as there are places."""
        with self._news:
            while self._waiting and len(self._running) < engine.places:
                job = self._waiting.popleft()
                job.answers = engine.answer(job.request, partial(self._check, job))
                self._running.append(job)
        self.energy.count_answers(len(self._running))

    def _check(self, job: _Job) -> None:
        if job.is_gone or self._is_closed:
            raise _Gone
        self._do_short()

    def _do_short(self) -> None:
        while self._short:
            self._short.popleft()()

    def _advance(self, engine: Engine) -> None:
        """Passes on what there is of each running answer, then computes more of all."""
        for job in list(self._running):
            if not self._passes_on(engine, job):
                self._running.remove(job)
                self.energy.count_answers(len(self._running))
        if not self._running:
            return
        try:
            engine.step()
        except Exception as error:  # of no one answer
            engine.model.source.reset()
            for job in self._running:
                job.answers.close()
                job.put(error)
            self._running.clear()

    def _passes_on(self, engine: Engine, job: _Job) -> bool:
        """Passes events on; False after the last."""
        try:
            for event in job.answers:
                if event is None:
                    return True
                job.put(event)
            job.put(None)
        except _Gone:
            job.put(_ending())
        except EdgeError as error:
            job.put(error)
        except Exception as error:
            if engine.places == 1:  # what the cache holds is not known; a batch knows
                engine.model.source.reset()
            job.put(error)
        return False


def _ending() -> Busy:
    return Busy("the server is ending; start it again.")
