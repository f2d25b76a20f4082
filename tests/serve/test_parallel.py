"""Many answers at once: each is the one given alone, and their energy adds up."""

import asyncio
import random
from contextlib import aclosing, contextmanager

import pytest

from edge.cli import serve
from edge.cli.options.serve import parser
from edge.device.memory import MemoryRoom
from edge.generate.batch import Batch
from edge.generate.sampling import Sampling
from edge.model import memory
from edge.power.choose import NoMeter
from edge.power.meter import Sample, integrate
from edge.serve.energy import EnergyMeter
from edge.serve.engine import ServedModel
from edge.serve.queue import Queue
from edge.serve.request import Chat, End, Hole, Message, Request, Text
from tests.serve.scripted import Steady

SEEDED = Sampling(0.9, top_p=0.9, top_k=30, seed=7)
KINDS = (
    Request(Text(("def fib(n):\n",)), 16),
    Request(Text(("x = [1, 2,",)), 24, (SEEDED,)),
    Request(Hole("for key, value in d.", "():\n    print(key, value)\n"), 20),
    Request(Chat((Message("user", "hi"),)), 12),
    Request(Text(("import os\n" * 60,)), 9, stop=("import sys",)),
    Request(Text(("class A:\n",)), 12, (SEEDED, Sampling(0.5, seed=3)), logprobs=2),
)


@pytest.fixture(scope="module")
def opened(demo):
    """Makes a started queue with so many places."""

    @contextmanager
    def make(places, energy=None):
        model, tokenizer = demo.loaded
        served = ServedModel("m", Batch(model, places), tokenizer, prefill_tokens=64)
        energy = energy or EnergyMeter(NoMeter("none"), "none")
        queue = Queue(lambda: served, energy, 64)
        queue.start()
        try:
            yield queue
        finally:
            queue.close()

    return make


async def answer(queue, request, pieces=10**9):
    """The texts of the answers and their ends; after so many pieces the client leaves."""
    texts, ends = [""] * len(request.samplings), []
    async with aclosing(queue.answer(request)) as events:
        async for event in events:
            if isinstance(event, End):
                ends.append(event)
            else:
                texts[event.index] += event.text
                pieces -= 1
            if pieces <= 0:
                break
    return texts, ends


async def answers(queue, requests, leaving=()):
    jobs = (answer(queue, r, 3 if i in leaving else 10**9) for i, r in enumerate(requests))
    return await asyncio.gather(*jobs, return_exceptions=True)


def test_16_at_once_equal_those_alone(opened):
    with opened(1) as queue:
        expected = [asyncio.run(answer(queue, request)) for request in KINDS]
    requests = [*KINDS, *KINDS, *KINDS[:4]]
    random.Random(3).shuffle(requests)
    leaving = {2, 7, 11}
    for places in (16, 5):
        with opened(places) as queue:
            found = asyncio.run(answers(queue, requests, leaving))
        for place, (request, (texts, ends)) in enumerate(zip(requests, found, strict=True)):
            wanted, wanted_ends = expected[KINDS.index(request)]
            if place in leaving:
                assert wanted[0].startswith(texts[0])
                continue
            assert texts == wanted
            assert [e.stopped_by for e in ends] == [e.stopped_by for e in wanted_ends]
            usages = [end.usage.generated_tokens for end in ends]
            assert usages == [end.usage.generated_tokens for end in wanted_ends]


def test_an_error_is_of_its_answer_and_one_of_the_batch_of_all(opened, monkeypatch):
    with opened(3) as queue:
        alone = asyncio.run(answer(queue, KINDS[0]))
        steps = type(queue.engine)._steps

        def broken(self, request, *rest):
            made = steps(self, request, *rest)
            for count, step in enumerate(made):
                if request is KINDS[1] and count > 9:
                    raise ValueError("bug")
                yield step

        with monkeypatch.context() as patch:
            patch.setattr(type(queue.engine), "_steps", broken)
            found = asyncio.run(answers(queue, [KINDS[0], KINDS[1], KINDS[0]]))
        assert isinstance(found[1], ValueError)
        assert [texts for texts, _ in found[::2]] == [alone[0]] * 2
        with monkeypatch.context() as patch:
            failures = [MemoryError("full")]
            patch.setattr(Batch, "_submit", lambda *_: (_ for _ in ()).throw(failures[0]))
            assert asyncio.run(answers(queue, KINDS[:2])) == failures * 2
        assert asyncio.run(answer(queue, KINDS[0]))[0] == alone[0]


def test_energy_of_overlapping_answers_adds_up(opened):
    energy = EnergyMeter(Steady(5.0), "rapl")
    with opened(4, energy) as queue:
        found = asyncio.run(answers(queue, KINDS * 2))
    usages = [end.usage for _, ends in found for end in ends]
    seconds = max(u.end_ns for u in usages) - min(u.begin_ns for u in usages)
    joules = sum(u.energy.total_j for u in usages)
    assert joules == pytest.approx(5.0 * seconds / 1e9, rel=0.01)
    assert sum(u.end_ns - u.begin_ns for u in usages) > 2 * seconds  # they did overlap


def test_shares_of_uneven_power_add_up():
    chance = random.Random(5)
    energy = EnergyMeter(NoMeter("none"), "none")
    stamps = sorted(chance.sample(range(1, 10_000), 40))
    samples = [Sample(t, t + 50, {"CPU": chance.random()}) for t in range(0, 10_000, 50)]
    windows = [(0, 10_000)] + [tuple(sorted(chance.sample(stamps, 2))) for _ in range(12)]
    changes = sorted({0, *(stamp for window in windows for stamp in window)})
    energy._counts = tuple((at, sum(a <= at < b for a, b in windows)) for at in changes)
    shares = [energy._share_j(samples, *window) for window in windows]
    assert sum(shares) == pytest.approx(integrate(samples, 0, 10_000).total_j)
    assert shares[0] < sum(shares) / 2


@pytest.mark.parametrize(("room_caches", "asked", "places"), [(9, 3, 3), (2, 3, 2), (0, None, 1)])
def test_places_follow_from_the_memory(demo, monkeypatch, capsys, room_caches, asked, places):
    _, _, need = serve.open_for("serve", demo.path)
    room_bytes = need.working_bytes + memory.HEADROOM_BYTES + room_caches * need.cache_bytes
    room = MemoryRoom(room_bytes, room_bytes, "memory")
    monkeypatch.setattr(memory, "available_bytes", lambda: room)
    monkeypatch.setattr(serve, "open_for", lambda *_: (*demo.loaded, need))
    args = parser().parse_args([] if asked is None else ["--parallel", str(asked)])
    args.command = "serve"
    opened = serve._open(args, demo.path, "demo")
    assert opened.source.slots == places
    assert opened.running_bytes == need.running_bytes + (places - 1) * need.cache_bytes
    said = capsys.readouterr().err
    how = {3: "", 2: "answered 2 at a time", 1: "answered one by one"}[places]
    assert how in said and bool(said) == (places < 3)
