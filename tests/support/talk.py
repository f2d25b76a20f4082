"""Questions to a conversation, and what comes of them."""

import contextlib
import itertools

from edge.generate.decode import generate_tokens
from edge.generate.sampling import Sampling
from edge.generate.stream import stream_generate

# With the demo greedy answers often end at once, these do not, and WILD ones never.
DRAWN, WILD = Sampling(temperature=0.8, seed=3), Sampling(temperature=3, seed=1)


def joined(events):
    return "".join(event.text for event in events)


def ids_of(events):
    return [token for event in events for token in event.ids]


def tokens(model, ids, **options):
    return list(generate_tokens(model, ids, **options))


def offsets(cache):
    """The set of the layers' lengths."""
    return {layer.offset for layer in cache}


def some(events, count):
    """The text of the first events; the rest is closed."""
    taken = list(itertools.islice(events, count))
    events.close()
    return joined(taken)


def fresh(loaded, ids, **options):
    """The ids and the text of a generation without a cache."""
    events = list(stream_generate(*loaded, ids, **options))
    return ids_of(events), joined(events)


def resident_bytes(monkeypatch):
    """Records the bytes to keep resident, and 0 for each end."""
    seen = []

    @contextlib.contextmanager
    def wired(need_bytes):
        seen.append(need_bytes)
        yield
        seen.append(0)

    for module in ("edge.cli.complete", "edge.chat.session"):
        monkeypatch.setattr(f"{module}.wired", wired)
    return seen


def asked(conversation, text=None, **options):
    """Asks, or regenerates without a text; returns the prompt, the generated ids, the answer."""
    ask = conversation.regenerate if text is None else conversation.ask
    events = ask(**options) if text is None else ask(text, **options)
    prompt = list(conversation._asked)
    events = list(events)
    return prompt, ids_of(events), joined(events)
