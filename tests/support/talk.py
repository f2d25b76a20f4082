"""What tests say to a conversation."""

import contextlib
import itertools

from edge.generate.sampling import Sampling
from edge.generate.stream import stream_generate

# Drawn answers do not end at once, as the demo's most probable ones often do.
DRAWN = Sampling(temperature=0.8, seed=3)
# These do not end at all.
WILD = Sampling(temperature=3, seed=1)


def joined(events):
    return "".join(event.text for event in events)


def ids_of(events):
    return [token for event in events for token in event.ids]


def offsets(cache):
    """Lengths of the layers: one where they agree."""
    return {layer.offset for layer in cache}


def some(events, count):
    """The text of so many events, after which they are closed."""
    taken = list(itertools.islice(events, count))
    events.close()
    return joined(taken)


def fresh(loaded, ids, **options):
    """The ids and the text that a generation of the whole prompt, with nothing cached, gives."""
    events = list(stream_generate(*loaded, ids, **options))
    return ids_of(events), joined(events)


def resident_bytes(monkeypatch):
    """Bytes asked to be resident, and 0 when that ends, in the order of time."""
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
    """Ask, or without a text answer again; the prompt and everything generated."""
    ask = conversation.regenerate if text is None else conversation.ask
    events = ask(**options) if text is None else ask(text, **options)
    prompt = list(conversation._asked)
    events = list(events)
    return prompt, ids_of(events), joined(events)
