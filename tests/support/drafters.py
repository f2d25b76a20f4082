"""Drafters that know the text, or are wrong."""

from edge.generate.speculate import MOST_PROPOSED, DraftLength, PromptLookup


class Oracle:
    """Proposes a text known beforehand, every so many ids a wrong one."""

    def __init__(self, prompt_tokens, text, wrong_every=10**9, length=None):
        self.length = length or DraftLength(fixed=5)
        self.text = [1 if i % wrong_every == wrong_every - 1 else t for i, t in enumerate(text)]
        self.prompt_tokens = prompt_tokens

    def begin(self, ids):
        self.drafted = self.accepted = 0
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


def lookup(fixed=4):
    return PromptLookup(length=DraftLength(fixed=fixed))
