"""What tests say to a conversation."""

import itertools

from edge.generate.sampling import Sampling
from edge.generate.stream import stream_generate

# Drawn answers do not end at once, as the demo's most probable ones often do.
DRAWN = Sampling(temperature=0.8, seed=3)
# These do not end at all.
WILD = Sampling(temperature=3, seed=1)


def joined(events):
    return "".join(event.text for event in events)


def some(chat, text, count, **options):
    """Ask, take so many events, and close."""
    events = chat.ask(text, **options)
    taken = list(itertools.islice(events, count))
    events.close()
    return joined(taken)


def fresh(loaded, ids, **options):
    """The ids that a generation of the whole prompt, with nothing cached, gives."""
    events = list(stream_generate(*loaded, ids, **options))
    return [i for event in events for i in event.ids], joined(events)


def asked(loaded, conversation, again=False, text="", **options):
    """Ask or answer again; the prompt and everything generated."""
    ask = conversation.regenerate if again else lambda **o: conversation.ask(text, **o)
    events = ask(**options)
    ids = list(conversation._plan.ids)
    events = list(events)
    return ids, [i for event in events for i in event.ids], joined(events)
