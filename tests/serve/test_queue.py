"""The queue and the thread that owns the model: places, leaving, failures, energy."""

import asyncio
import time
from contextlib import aclosing

import pytest

from edge.errors import EdgeError
from edge.power.choose import NoMeter
from edge.serve import energy as energies
from edge.serve.energy import EnergyMeter
from edge.serve.engine import ServedModel
from edge.serve.queue import Busy, Queue
from edge.serve.request import Chat, End, Hole, Message, Piece, Refused, Request, Text, Usage
from tests.serve.scripted import Scripted, Steady

LONG = Request(Text(("x",)), 1000)


@pytest.fixture
def queues(demo):
    """Makes a started queue of a scripted source."""
    made = []

    def make(parts=1, most_waiting=2):
        tokenizer = demo.loaded[1]
        source = Scripted(tokenizer.encode(" one two\n"), parts)
        energy = EnergyMeter(NoMeter("none"), "none")
        queue = Queue(lambda: ServedModel("m", source, tokenizer), energy, most_waiting)
        made.append(queue)
        queue.start()
        source.armed, source.done = True, 0
        return queue, source

    yield make
    for queue in made:
        queue.engine.model.source.armed = False
        queue.engine.model.source.steps.release()
        queue.close()


def test_leaving_ends_an_answer_within_one_token(queues):
    queue, source = queues()

    async def leave():
        async with aclosing(queue.answer(LONG)) as events:
            source.steps.release(4)
            assert [(await anext(events)).text for _ in range(3)] == [" one", " two", "\n"]
        assert source.end() <= 2  # one computed ahead of the last that was read, and one after

    asyncio.run(leave())


def test_leaving_ends_a_prompt_between_its_parts(queues):
    queue, source = queues(parts=100)

    async def leave():
        events = queue.answer(LONG)
        first = asyncio.ensure_future(anext(events))
        source.steps.release(3)
        while source.done < 3:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert source.end() <= 2
        assert queue.counts[1] == 0

    asyncio.run(leave())


def test_a_full_queue_refuses_and_a_waiting_client_that_leaves_frees_its_place(queues):
    queue, source = queues(most_waiting=1)

    async def fill():
        running = queue.answer(LONG)
        source.steps.release(2)
        await anext(running)
        waiting = asyncio.ensure_future(anext(queue.answer(LONG)))
        while queue.counts != (1, 1):
            await asyncio.sleep(0)
        with pytest.raises(Busy, match="1 requests wait already") as busy:
            await anext(queue.answer(LONG))
        assert busy.value.status == 503
        # Short work is done between two tokens.
        work = asyncio.ensure_future(queue.call(lambda engine: engine.tokenize("x", False, True)))
        left = asyncio.ensure_future(queue.call(lambda engine: 1))
        await asyncio.sleep(0)
        left.cancel()
        source.steps.release(2)
        assert await work and queue.is_alive
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert queue.counts == (1, 0)
        refused = asyncio.ensure_future(anext(queue.answer(LONG)))
        while queue.counts != (1, 1):
            await asyncio.sleep(0)
        queue.end()
        for late in (refused, anext(queue.answer(LONG)), queue.call(lambda engine: 1)):
            with pytest.raises(Busy, match="the server is ending"):
                await late
        await running.aclose()
        source.end()

    asyncio.run(fill())


def collect(queue, request):
    async def all_events():
        return [event async for event in queue.answer(request)]

    return asyncio.run(all_events())


def test_a_failure_ends_its_answer_alone(queues, monkeypatch):
    queue, source = queues()
    source.armed = False
    whole = collect(queue, Request(Text(("x",)), 3))
    assert "".join(e.text for e in whole if isinstance(e, Piece)) == " one two\n"
    generate, failures = source.generate, []

    def broken(*args, **how):
        reused, tokens = generate(*args, **how)

        def failing():
            yield next(tokens)
            raise failures.pop()

        return reused, failing()

    monkeypatch.setattr(source, "generate", broken)
    for failure, raised, status in (
        (ValueError("bug"), ValueError, None),
        (EdgeError("the weights are damaged."), Refused, 500),
    ):
        failures.append(failure)
        with pytest.raises(raised) as caught:
            collect(queue, Request(Text(("x",)), 3))
        assert getattr(caught.value, "status", None) == status
    monkeypatch.undo()
    assert len(collect(queue, Request(Text(("x",)), 3))) == len(whole)


def test_log_probabilities_are_the_model_s(demo):
    import mlx.core as mx

    from edge.generate.batch import Batch

    model, tokenizer = demo.loaded
    energy = EnergyMeter(NoMeter("none"), "none")
    queue = Queue(lambda: ServedModel("m", Batch(model, 1), tokenizer), energy, 1)
    queue.start()
    try:
        prompts = (Text(("x = [1, 2,",)), Hole("x = [1, 2,", "]\n"))
        for prompt in prompts:
            events = collect(queue, Request(prompt, 4, logprobs=3))
            tokens = [token for e in events if isinstance(e, Piece) for token in e.tokens]
            assert tokens
            assert all(t.top[0][:2] == (t.id, t.text) and len(t.top) == 3 for t in tokens)
            assert all(t.logprob == t.top[0][2] for t in tokens)
        ids = tokenizer.encode("x = [1, 2,")
        logits = model(mx.array([ids]))[0, -1].astype(mx.float32)
        expected = (logits - mx.logsumexp(logits)).max().item()
        first = next(e for e in collect(queue, Request(prompts[0], 1, logprobs=0)))
        assert first.tokens[0].logprob == pytest.approx(expected, abs=1e-3)
        chat = Request(Chat((Message("user", "hi"),)), 2)
        *_, end = collect(queue, chat)
        assert isinstance(end, End) and end.usage.prompt_tokens > 5
    finally:
        queue.close()


def test_energy_is_the_integral_over_the_answer(monkeypatch):
    monkeypatch.setattr(energies, "MOST_WAIT_S", 0.0)

    def measured(meter, source="rapl"):
        energy = EnergyMeter(meter, source)
        begin_ns = time.monotonic_ns()
        usage = Usage(9, 0, 3, begin_ns, begin_ns + 10**6, begin_ns + 4 * 10**6)
        while time.monotonic_ns() < usage.end_ns:
            pass
        return asyncio.run(energy.measured(usage)).energy, energy

    found, energy = measured(Steady())
    assert (found.prefill_j, found.decode_j) == pytest.approx((0.005, 0.015))
    assert (found.boundary, energy.boundary, energy.reason) == ("CPU", "CPU", "")
    assert measured(Steady(late_ns=10**10))[0] is None
    found, energy = measured(NoMeter("there is none"))
    assert (found, energy.boundary, energy.reason) == (None, None, "there is none")
