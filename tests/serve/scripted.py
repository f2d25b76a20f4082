"""A model whose tokens come when a test lets them, and a meter of constant power."""

import threading
import time

import mlx.core as mx

from edge.power.meter import Meter, Sample


class Scripted:
    """A source of the tokens of a text; once `armed` each part of a prompt and token is waited for.

    `step` lets one come; `ended` is set when nobody wants more.
    """

    context_tokens = 1024

    def __init__(self, ids, parts=1):
        self.ids, self.parts = ids, parts
        self.armed = False
        self.ended = threading.Event()
        self.steps = threading.Semaphore(0)
        self.done = 0  # parts and tokens
        self.asked = []

    def generate(self, ids, max_tokens, sampling, on_prefill, prefill_tokens, on_pick):
        self.asked.append(ids)
        self.ended.clear()
        return 0, self._tokens(max_tokens, on_prefill, on_pick)

    def _tokens(self, max_tokens, on_prefill, on_pick):
        try:
            for part in range(self.parts):
                self._wait()
                on_prefill(part + 1, self.parts)
            for place in range(9 if max_tokens is None else min(max_tokens, 1000)):
                self._wait()
                token = self.ids[place % len(self.ids)]
                if on_pick is not None:
                    on_pick(mx.zeros((1, max(self.ids) + 1)), mx.array([token]))
                yield token
        finally:
            self.ended.set()

    def _wait(self):
        assert not self.armed or self.steps.acquire(timeout=60)
        self.done += 1

    def end(self):
        """Lets steps come until nobody wants them; how many were taken."""
        before = self.done
        while not self.ended.wait(0.01):
            self.steps.release()
        return self.done - before

    def reset(self):
        pass


class Steady(Meter):
    """A meter of constant power whose samples cover all but the last `late_ns`."""

    source, boundary = "steady", "CPU"

    def __init__(self, power_w=5.0, late_ns=0):
        self.power_w, self.late_ns = power_w, late_ns

    def read(self, since_ns):
        end_ns = time.monotonic_ns() - self.late_ns
        joules = self.power_w * (end_ns - since_ns) / 1e9
        return (Sample(since_ns, end_ns, {"CPU": joules}),) if joules > 0 else ()
