"""Background jobs of a single process: priorities, delays, dependencies and retries.

`JobQueue` only decides what runs next and keeps the books. It starts no thread and never sleeps;
`Worker` does, and tests drive the queue with a clock of their own.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)


class State(enum.Enum):
    BLOCKED = "blocked"      # waits for other jobs
    WAITING = "waiting"      # waits for its time or a worker
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (State.DONE, State.FAILED, State.CANCELLED)


@dataclass
class Job:
    id: int
    name: str
    action: Callable[[], Any]
    priority: int = 0
    max_attempts: int = 1
    retry_delay_s: float = 1.0
    not_before: float = 0.0
    state: State = State.WAITING
    attempts: int = 0
    result: Any = None
    error: BaseException | None = None
    needs: set[int] = field(default_factory=set)


class UnknownJob(KeyError):
    pass


class JobQueue:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ids = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._dependants: dict[int, set[int]] = defaultdict(set)
        # (time, -priority, id): of the jobs that are due, `_ready` orders by priority alone.
        self._delayed: list[tuple[float, int]] = []
        self._ready: list[tuple[int, int]] = []
        self._changed = threading.Condition()

    def submit(
        self,
        action: Callable[[], Any],
        *,
        name: str | None = None,
        priority: int = 0,
        delay_s: float = 0.0,
        after: Iterable[int] = (),
        max_attempts: int = 1,
        retry_delay_s: float = 1.0,
    ) -> int:
        """Adds a job and returns its number.

        A job given in `after` that has already failed or was cancelled cancels this one too; one that is
        done is simply not waited for.
        """
        with self._changed:
            job = Job(
                id=next(self._ids),
                name=name or getattr(action, "__name__", "job"),
                action=action,
                priority=priority,
                max_attempts=max_attempts,
                retry_delay_s=retry_delay_s,
                not_before=self._clock() + delay_s,
            )
            needed = [self._get(id) for id in after]
            self._jobs[job.id] = job
            if any(other.state in (State.FAILED, State.CANCELLED) for other in needed):
                job.state = State.CANCELLED
                return job.id
            job.needs = {other.id for other in needed if not other.state.is_final}
            for id in job.needs:
                self._dependants[id].add(job.id)
            if job.needs:
                job.state = State.BLOCKED
            else:
                self._enqueue(job)
            return job.id

    def take(self) -> Job | None:
        """The most urgent job that may run now, marked as running, or None."""
        with self._changed:
            self._promote()
            while self._ready:
                _, id = heapq.heappop(self._ready)
                job = self._jobs[id]
                if job.state is State.WAITING:
                    job.state = State.RUNNING
                    job.attempts += 1
                    return job
            return None

    def next_due_in(self) -> float | None:
        """Seconds until a job may run: 0 if one can run now, None if none is in sight."""
        with self._changed:
            self._promote()
            if self._ready:
                return 0.0
            if self._delayed:
                return max(0.0, self._delayed[0][0] - self._clock())
            return None

    def finish(self, job: Job, result: Any = None) -> None:
        with self._changed:
            job.state, job.result = State.DONE, result
            for id in self._dependants.pop(job.id, ()):
                waiting = self._jobs[id]
                waiting.needs.discard(job.id)
                if not waiting.needs and waiting.state is State.BLOCKED:
                    waiting.state = State.WAITING
                    self._enqueue(waiting)
            self._changed.notify_all()

    def fail(self, job: Job, error: BaseException) -> None:
        with self._changed:
            job.error = error
            if job.attempts < job.max_attempts:
                pause = job.retry_delay_s * 2 ** (job.attempts - 1)
                log.warning("%s failed (%s), again in %.1f s", job.name, error, pause)
                job.state = State.WAITING
                job.not_before = self._clock() + pause
                self._enqueue(job)
            else:
                log.error("%s failed for good after %d attempts", job.name, job.attempts)
                job.state = State.FAILED
                self._cancel_dependants(job.id)
            self._changed.notify_all()

    def cancel(self, id: int) -> bool:
        """Takes back a job that has not started, and all that wait for it."""
        with self._changed:
            job = self._get(id)
            if job.state not in (State.WAITING, State.BLOCKED):
                return False
            job.state = State.CANCELLED
            self._cancel_dependants(id)
            self._changed.notify_all()
            return True

    def state(self, id: int) -> State:
        with self._changed:
            return self._get(id).state

    def wait_for_change(self, timeout: float | None) -> None:
        with self._changed:
            self._changed.wait(timeout)

    def _get(self, id: int) -> Job:
        try:
            return self._jobs[id]
        except KeyError:
            raise UnknownJob(id) from None

    def _enqueue(self, job: Job) -> None:
        heapq.heappush(self._delayed, (job.not_before, job.id))
        self._changed.notify_all()

    def _promote(self) -> None:
        now = self._clock()
        while self._delayed and self._delayed[0][0] <= now:
            _, id = heapq.heappop(self._delayed)
            heapq.heappush(self._ready, (-self._jobs[id].priority, id))

    def _cancel_dependants(self, id: int) -> None:
        for dependant in self._dependants.pop(id, ()):
            job = self._jobs[dependant]
            if job.state is State.BLOCKED:
                job.state = State.CANCELLED
                self._cancel_dependants(dependant)


class Worker(threading.Thread):
    """Runs jobs until `stop` is called, then finishes the one at hand."""

    def __init__(self, queue: JobQueue, name: str = "worker") -> None:
        super().__init__(name=name, daemon=True)
        self._queue = queue
        self._stopping = threading.Event()

    def stop(self, timeout: float | None = None) -> None:
        self._stopping.set()
        self.join(timeout)

    def run(self) -> None:
        while not self._stopping.is_set():
            job = self._queue.take()
            if job is None:
                due = self._queue.next_due_in()
                self._queue.wait_for_change(0.5 if due is None else min(due, 0.5))
                continue
            try:
                result = job.action()
            except Exception as error:
                self._queue.fail(job, error)
            else:
                self._queue.finish(job, result)


def run_all(queue: JobQueue) -> list[Job]:
    """Runs what is due in the calling thread; handy in scripts and tests."""
    finished = []
    while (job := queue.take()) is not None:
        try:
            queue.finish(job, job.action())
        except Exception as error:
            queue.fail(job, error)
        finished.append(job)
    return finished
