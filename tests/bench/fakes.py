"""An engine, a meter and a machine on a clock that moves only when they work."""

from edge.bench.cooldown import Machine
from edge.bench.engines.engine import EngineFacts
from edge.bench.trial import Trial
from edge.device.state import State
from edge.power.choose import NoMeter
from edge.power.meter import Sample


class FakeClock:
    def __init__(self):
        self.now_ns = 1_000

    def __call__(self) -> int:
        return self.now_ns


class FakeEngine:
    """Prefill costs 10 ns a token, generation 100 ns plus 1 ns per position of context."""

    def __init__(self, clock: FakeClock):
        self.clock = clock
        self.length = 0
        self.calls = []
        self.closed = False

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

    def facts(self):
        return EngineFacts("fake", "float32", "float32", 1, 1000, 10)

    def peak_device_bytes(self):
        return 0

    def close(self):
        self.closed = True


NS = 10**9


class FakeMeter:
    """The same watts all the time, in samples of `step_s`, from its clock's start to stop."""

    def __init__(self, clock, watts=7.0, step_s=0.5, unavailable=None, flags=(), rails=None):
        self.source, self.boundary, self.unavailable = "fake", "CPU and GPU", unavailable
        self.flags = flags
        self._clock, self._watts, self._step_ns = clock, watts, int(step_s * NS)
        self._rails = rails or {"CPU": 0.25, "GPU": 0.75}
        self._begin_ns = None

    def start(self):
        self._begin_ns = self._clock()

    def stop(self):
        end_ns, samples, at_ns = self._clock(), [], self._begin_ns
        while at_ns < end_ns and self.unavailable is None:
            watts = self._watts() if callable(self._watts) else self._watts
            joules = {
                rail: share * watts * self._step_ns / NS for rail, share in self._rails.items()
            }
            samples.append(Sample(at_ns, at_ns + self._step_ns, joules))
            at_ns += self._step_ns
        return samples


def samples_of(watts, last_s=400):
    """One-second samples of CPU 3 W and the rest GPU."""
    return [Sample(t * NS, (t + 1) * NS, {"CPU": 3.0, "GPU": watts - 3.0}) for t in range(last_s)]


class FakeMachine:
    """A machine whose clock moves only when somebody sleeps or works on it."""

    def __init__(self, watts=None, thermal=None, busy=0.0):
        self.clock = FakeClock()
        self.watts, self.thermal, self.share = watts, thermal, busy
        self.slept = []

    def machine(self):
        return Machine(self.new_meter, self.look, self.clock, self.sleep, self.busy)

    def new_meter(self):
        if self.watts is None:
            return NoMeter("power was not measured: there is none")
        return FakeMeter(self.clock, self.watts)

    def look(self):
        return State(thermal=next_of(self.thermal))

    def busy(self):
        return next_of(self.share)

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.clock.now_ns += int(seconds * NS)


def next_of(value):
    """A list is used up to its last element, which stays."""
    if not isinstance(value, list):
        return value
    return value.pop(0) if len(value) > 1 else value[0]


FACTS = EngineFacts("cpu", "float32", "float32", None, 1000, 10)


def trial(number, seconds_per_token=1.0, warmup=False, round_number=0, tokens=3):
    """Prefill of 10 tokens in 2 s, tokens from 5 s on; every trial begins 100 s later."""
    start = number * 100 * NS
    stamps = tuple(int(start + (5 + i * seconds_per_token) * NS) for i in range(tokens))
    prefill_ns = ((start, start + 2 * NS),)
    return Trial(number, warmup, prefill_ns, (stamps,), 10, round_number)
