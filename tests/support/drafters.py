"""What proposes tokens in tests, and tiny models to propose them to."""

import mlx.core as mx

from edge.generate.speculate import MOST_PROPOSED, DraftLength, PromptLookup
from edge.model.config import ModelConfig
from edge.model.stablelm import Model
from tests.support.tiny import random_tensors


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


def tiny(raw, seed=0):
    config = ModelConfig.from_dict(raw)
    model = Model(config)
    tensors = {name: mx.array(array) for name, array in random_tensors(config, seed).items()}
    model.load_weights(list(model.sanitize(tensors).items()))
    return model
