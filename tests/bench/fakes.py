"""A fake engine, meter and machine, on a clock that only their work moves."""

from msgspec.structs import replace

from edge.bench import cooldown, runner, trial
from edge.bench.cooldown import Cooldown
from edge.bench.plan import Target
from edge.bench.row import Context
from edge.bench.runner import Outcome, ProcessRun
from edge.bench.trial import make_trial, with_energy
from edge.bench.worker import Done, Job
from edge.convert.artefacts.recipes import RECIPES
from edge.device.describe import Bandwidth, Device
from edge.device.state import State
from edge.power.choose import NoMeter
from edge.power.meter import Sample
from edge.profile.gate import Gate
from edge.profile.profile import EngineFacts, ModelInfo, Workload

NS = 10**9


class FakeClock:
    """Replaces the module `time` too."""

    def __init__(self):
        self.now_ns, self.slept = 1_000, []

    def monotonic_ns(self):
        return self.now_ns

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now_ns += int(seconds * NS)


class FakeEngine:
    """Prefill takes 10 ns per token, decoding 100 ns plus 1 ns per position of context."""

    def __init__(self, clock):
        self.clock = clock
        self.length, self.calls, self.closed = 0, [], False

    def prefill(self, ids):
        self.calls.append(("prefill", self.length, list(ids)))
        self.length += len(ids)
        self.clock.now_ns += 10 * len(ids)

    def decode(self, ids, stamp):
        self.calls.append(("decode", self.length, list(ids)))
        for _ in ids:
            self.clock.now_ns += 100 + self.length
            self.length += 1
            stamp()

    def trim(self, length):
        assert length <= self.length
        self.length = length

    def least_rows(self):
        return 0

    def facts(self):
        return FACTS

    def peak_device_bytes(self):
        return 0

    def alone(self):
        return self

    def close(self):
        self.closed = True


class FakeMeter:
    """Constant watts, or those of a function, in samples of half a second."""

    source, boundary = "fake", "CPU and GPU"

    def __init__(self, clock, watts=7.0, unavailable=None, flags=()):
        self.unavailable, self.flags = unavailable, flags
        self._clock, self._watts, self._step_ns = clock, watts, NS // 2

    def start(self):
        self._begin_ns = self._clock.monotonic_ns()

    def stop(self):
        end_ns, samples, at_ns = self._clock.monotonic_ns(), [], self._begin_ns
        while at_ns < end_ns and self.unavailable is None:
            watts = self._watts() if callable(self._watts) else self._watts
            joules = {"CPU": 0.25 * watts / 2, "GPU": 0.75 * watts / 2}
            samples.append(Sample(at_ns, at_ns + self._step_ns, joules))
            at_ns += self._step_ns
        return samples


class FakeMachine:
    """This machine on a FakeClock. Of a list of values each is used once, the last one again."""

    def __init__(self, monkeypatch, watts=None, thermal=None, busy=0.0):
        self.clock = FakeClock()
        self.watts, self.thermal = watts, thermal
        for module in (cooldown, trial):
            monkeypatch.setattr(module, "time", self.clock)
        for module in (cooldown, runner):
            monkeypatch.setattr(module, "read_state", lambda: State(thermal=next_of(self.thermal)))
        percent = lambda interval: 100 * next_of(busy)  # noqa: E731
        monkeypatch.setattr(cooldown.psutil, "cpu_percent", percent)

    def new_meter(self):
        return NO_METER if self.watts is None else FakeMeter(self.clock, self.watts)


def next_of(value):
    if not isinstance(value, list):
        return value
    return value.pop(0) if len(value) > 1 else value[0]


FACTS = EngineFacts(
    device="cpu",
    compute_dtype="float32",
    kv_dtype="float32",
    weight_bytes_per_token=1000,
    kv_bytes_per_position=10,
)
GATE = Gate(prompt_tokens=8, depth=0, positions=3, worst_position=7, worst_error=0.01, bound=0.05)
PC = Device("PC", "x86_64", 8, 16, 2**36, "Linux", memory_bandwidth=Bandwidth(1e-5, "table"))
MODEL = ModelInfo("demo", "demo", None, 5)
TARGET = Target(RECIPES["mlx-int4"], "x", ("mlx",), MODEL, file_bytes=1000, bits_per_weight=4.5)
JOB = Job("mlx", "x", Workload(10, 3, 100), 50, 0, 3, 1, 2)
NO_METER = NoMeter("power was not measured: there is none")


def job_of(engine, path, workload=Workload(8, 4), **fields):  # noqa: B008
    """Two trials after a warm-up on the demo's vocabulary."""
    return Job(engine, str(path), workload, 4096, 0, 2, 1, 2, **fields)


def context(rounds=1, device=PC, **fields):
    return Context(rounds, device, MODEL, **fields)


def worked(*flags):
    """A meter that has measured."""
    return FakeMeter(None, flags=flags)


def done(**changes):
    fields = {"load_s": 0.5, "peak_memory_bytes": 7, "peak_device_bytes": None, "facts": FACTS}
    return Done(**{**fields, **changes})


def samples_of(watts, last_s=400):
    """One-second samples: CPU 3 W, GPU the rest."""
    return [Sample(t * NS, (t + 1) * NS, {"CPU": 3.0, "GPU": watts - 3.0}) for t in range(last_s)]


def trial_at(number, seconds_per_token=1.0, tokens=3, **fields):
    """A trial from 100 s x number on: prefill of 10 tokens in 2 s, tokens from 5 s on."""
    start = number * 100 * NS
    stamps = [int(start + (5 + i * seconds_per_token) * NS) for i in range(tokens)]
    made = make_trial(10, [(start, start + 2 * NS)], [stamps])
    return replace(made, repetition=number, **fields)


THREE = [trial_at(1), trial_at(2), trial_at(3)]


def process(
    trials,
    number=0,
    meter=NO_METER,
    samples=(),
    failure=None,
    before=State(),  # noqa: B008
    after=State(),  # noqa: B008
    cooldown=Cooldown(),  # noqa: B008
    **changes,
):
    """One process of a row; `changes` are fields of the worker's last message."""
    measured = [with_energy(replace(t, round=number), samples, meter.source) for t in trials]
    outcome = Outcome(measured, None if failure else done(**changes), failure)
    return ProcessRun(number, outcome, meter, samples, before, after, cooldown)
