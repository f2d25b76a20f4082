"""What the server has done, for Prometheus; llama-server's names where it has them."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from edge.serve.request import End, Event, Usage

COUNTERS = {
    "llamacpp:prompt_tokens": "Prompt tokens computed; those in the cache are not.",
    "llamacpp:prompt_seconds": "Time for prompts.",
    "llamacpp:tokens_predicted": "Generated tokens.",
    "llamacpp:tokens_predicted_seconds": "Time for generated tokens.",
    "edge:prompt_tokens_cached": "Prompt tokens found in the cache.",
}
GAUGES = {
    "llamacpp:requests_processing": "Requests being answered.",
    "llamacpp:requests_deferred": "Requests that wait.",
    "llamacpp:prompt_tokens_seconds": "Tokens per second of the last prompt.",
    "llamacpp:predicted_tokens_seconds": "Tokens per second of the last answer.",
}
# From a small model on a fast machine to a long prompt on a slow one.
FIRST_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
PER_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


class Metrics:
    """Counts finished answers; one that its client left is not counted."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        own = self._registry = CollectorRegistry()
        self._counters = {
            name: Counter(name, said, registry=own) for name, said in COUNTERS.items()
        }
        self._gauges = {name: Gauge(name, said, registry=own) for name, said in GAUGES.items()}
        said = "From the request to the first text, the wait in the queue included."
        name = "edge:time_to_first_token_seconds"
        self._first_s = Histogram(name, said, buckets=FIRST_S, registry=own)
        said, name = "Of an answer, on average.", "edge:time_per_token_seconds"
        self._per_token_s = Histogram(name, said, buckets=PER_TOKEN_S, registry=own)
        said, labels = "Energy of answers; the boundary says what it covers.", ("phase", "boundary")
        self._energy_j = Counter("edge:energy_joules", said, labels, registry=own)
        self._answers = Counter("edge:answers", "Answers by their end.", ("end",), registry=own)

    async def counted(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """The events of a request, which are counted on their way."""
        begin_s = time.monotonic()
        is_first = True
        async with aclosing(events):
            async for event in events:
                if is_first:
                    self._first_s.observe(time.monotonic() - begin_s)
                    is_first = False
                if isinstance(event, End):
                    self._answers.labels(event.stopped_by).inc()
                    self._count(event.usage)
                yield event

    def text(self, running: int, waiting: int) -> bytes:
        """All metrics in Prometheus' format."""
        self._gauges["llamacpp:requests_processing"].set(running)
        self._gauges["llamacpp:requests_deferred"].set(waiting)
        return generate_latest(self._registry)

    def _count(self, usage: Usage) -> None:
        computed, generated = usage.prompt_tokens - usage.cached_tokens, usage.generated_tokens
        values = (computed, usage.prefill_s, generated, usage.decode_s, usage.cached_tokens)
        for counter, value in zip(self._counters.values(), values, strict=True):
            counter.inc(value)
        if usage.prefill_s:
            self._gauges["llamacpp:prompt_tokens_seconds"].set(computed / usage.prefill_s)
        if generated:
            self._gauges["llamacpp:predicted_tokens_seconds"].set(generated / usage.decode_s)
            self._per_token_s.observe(usage.decode_s / generated)
        if (energy := usage.energy) is not None:
            self._energy_j.labels("prefill", energy.boundary).inc(energy.prefill_j)
            self._energy_j.labels("decode", energy.boundary).inc(energy.decode_j)
