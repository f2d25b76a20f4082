"""What proposes tokens in tests, and tiny models to propose them to."""

from edge.generate.decode import generate_tokens
from edge.generate.lookup import PromptLookup
from edge.generate.speculate import MOST_PROPOSED, Pace
from tests.support.tiny import tiny_model

tiny = tiny_model


class Oracle:
    """Proposes a text known beforehand, every so many ids a wrong one."""

    def __init__(self, prompt_tokens, text, wrong_every=10**9, pace=None):
        self.pace = pace or Pace(fixed=5)
        self.text = [1 if i % wrong_every == wrong_every - 1 else t for i, t in enumerate(text)]
        self.prompt_tokens = prompt_tokens

    def begin(self, ids):
        self.pace.begin()
        self.place = len(ids) - self.prompt_tokens

    def extend(self, ids):
        self.place += len(ids)

    def kind(self):
        return 0 if self.place + MOST_PROPOSED < len(self.text) else None

    def propose(self, count):
        return self.text[self.place : self.place + count]


class Wrong(PromptLookup):
    """Proposes what a lookup does, plus one."""

    def propose(self, count):
        return [(token + 1) % 160 for token in super().propose(count)]


def both(model, prompt, draft, **options):
    """The tokens without a drafter and with one."""
    plain = list(generate_tokens(model, prompt, **options))
    return plain, list(generate_tokens(model, prompt, draft=draft, **options))
