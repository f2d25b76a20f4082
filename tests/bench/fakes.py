"""A clock that moves only when the fake engine works."""

from edge.bench.engines.engine import EngineFacts


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

    def logits_are_finite(self):
        return True

    def facts(self):
        return EngineFacts("fake", "float32", "float32", 1, 1000, 10)

    def peak_device_bytes(self):
        return 0
