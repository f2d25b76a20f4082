"""What the demo is trained on: rows of packed samples with weights.

A sample is a piece of code, a piece of code with a hole, a dialogue, or a copy of something. Holes
are cut as an editor and `edge eval --fim` cut them; prefix, suffix and middle are encoded one by
one, as `edge.generate.fim` does. Samples of a row do not see each other.
"""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

END = 0  # <|endoftext|>
# Of samples. Copies teach attention to find what came before, which holes need.
SHARES = {"hole": 0.70, "code": 0.13, "dialogue": 0.11, "copy": 0.06}
LANGUAGES = {
    "python": 0.34, "javascript": 0.15, "typescript": 0.11, "rust": 0.13, "go": 0.10, "c": 0.09,
    "cpp": 0.04, "java": 0.03, "shell": 0.01,
}  # fmt: skip
FIM = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>")
HOLES = {"in line": 62, "rest of line": 14, "line": 10, "expression": 9, "block": 5}
SPM_SHARE = 0.8
LONG_SHARE = 0.2  # of holes, with as much text around them as fits
# Weights of tokens in the loss: few tokens of a sample are what it is for.
CONTEXT, MIDDLE, MIDDLE_END, QUESTION, ANSWER = 0.4, 3.0, 5.0, 0.3, 1.5
EXPRESSION = re.compile(
    r"(?<=[=(,\[{] )\S[^\n]*?(?=[,)\]};\n])"  # a value, or an argument after the first
    r"|(?<=[(\[{])[^\s()\[\]{}][^\n]*?(?=[)\]}])"  # what is in brackets
)
CHARACTERS_PER_TOKEN = 3.0

Sample = tuple[list[int], list[float]]


@dataclass
class Samples:
    """Draws samples with one random generator."""

    tokenizer: Tokenizer
    files: dict[str, list[str]]
    dialogues: list[list[list[str]]]
    rng: random.Random

    @classmethod
    def read(cls, folder: Path, tokenizer: Tokenizer, seed: int) -> Samples:
        """The files of `demo/corpus.py` and the dialogues of `demo/dialogues.py`."""
        files = {name: texts(folder / f"{name}.jsonl") for name in LANGUAGES}
        path = folder / "dialogues.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return cls(tokenizer, files, [json.loads(line) for line in lines], random.Random(seed))

    def row(self, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids (length + 1), the weight of predicting each next one and its sample's number."""
        ids, weights, owner = [END], [0.0], [0]
        number = 0
        while (room := length + 1 - len(ids)) > 0:
            kind = self.rng.choices(list(SHARES), list(SHARES.values()))[0]
            if kind == "dialogue" and not self.dialogues:
                kind = "hole"
            sample = getattr(self, kind)(length)
            if len(sample[0]) > room:
                if kind != "code" and room > 48:
                    continue
                sample = self.code(room)
            # The first token is not predicted from the sample before.
            ids += sample[0][:room]
            weights += [0.0, *sample[1][1:]][:room]
            owner += [number := number + 1] * min(room, len(sample[0]))
        return np.array(ids), np.array(weights[1:], np.float32), np.array(owner[:-1])

    def code(self, room: int) -> Sample:
        """A piece that begins with a line, of about `room` tokens at most."""
        text, at = self._place()
        at = text.rfind("\n", 0, at) + 1
        most = int(room * CHARACTERS_PER_TOKEN * 1.3)
        ids = [*self.tokenizer.encode(text[at : at + most]).ids[:room], END]
        return ids, [1.0] * len(ids)

    def copy(self, room: int) -> Sample:
        """A short piece of code, or ids without a meaning, twice or three times."""
        length = self.rng.randint(6, room // 4)
        if self.rng.random() < 0.4:
            ids = self.rng.choices(range(self.tokenizer.get_vocab_size()), k=length)
        else:
            ids = self.code(length)[0][:length]
        again = self.rng.randint(1, 2)
        weights = [0.0] * (2 + len(ids)) + [1.0] * (len(ids) * again - 1)
        return [END, *ids * (1 + again)], weights

    def hole(self, room: int) -> Sample:
        """A piece with a hole: prefix, suffix and middle in one of the two orders."""
        while True:
            text, at = self._place()
            begin, end = self._span(text, at)
            if text[begin:end].strip():
                break
        # Often next to nothing, so that what goes on where the prefix ended is learnt nearby.
        before, after = (room * CHARACTERS_PER_TOKEN * share for share in (0.6, 0.25))
        if self.rng.random() >= LONG_SHARE:
            before, after = self._length(8, before), self._length(1, after) - 1
        before, after = int(before), int(after)
        prefix, suffix = text[max(0, begin - before) : begin], text[end : end + after]
        a, m, s = (self.tokenizer.encode(t).ids for t in (prefix, text[begin:end], suffix))
        pre, mid, suf = map(self.tokenizer.token_to_id, FIM)
        heads = [pre, *a, suf, *s, mid], [pre, suf, *s, mid, *a]
        head = heads[self.rng.random() < SPM_SHARE]
        return [*head, *m, END], [CONTEXT] * len(head) + [MIDDLE] * len(m) + [MIDDLE_END]

    def dialogue(self, room: int) -> Sample:
        """Turns in ChatML; the answers count more than the questions."""
        ids, weights = [], []
        for role, content in self.rng.choice(self.dialogues):
            head = self.tokenizer.encode(f"<|im_start|>{role}\n").ids
            body = self.tokenizer.encode(f"{content}<|im_end|>").ids
            ids += [*head, *body, *self.tokenizer.encode("\n").ids]
            weight = ANSWER if role == "assistant" else QUESTION
            weights += [QUESTION] * len(head) + [weight] * len(body) + [QUESTION]
        return [*ids, END], [*weights, QUESTION]

    def _length(self, least: float, most: float) -> int:
        """Characters, uniform in their logarithm."""
        return round(math.exp(self.rng.uniform(math.log(least), math.log(most))))

    def _place(self) -> tuple[str, int]:
        language = self.rng.choices(list(LANGUAGES), list(LANGUAGES.values()))[0]
        text = self.rng.choice(self.files[language])
        return text, self.rng.randrange(len(text))

    def _span(self, text: str, at: int) -> tuple[int, int]:
        """Begin and end of a hole at or near a place."""
        kind = self.rng.choices(list(HOLES), list(HOLES.values()))[0]
        line, line_end = text.rfind("\n", 0, at) + 1, _line_end(text, at)
        if kind == "in line":
            return at, min(line_end, at + 1 + int(self.rng.random() * (line_end - at)))
        if kind == "expression":
            found = [m.span() for m in EXPRESSION.finditer(text, line, line_end)]
            if found:
                return self.rng.choice(found)
        if kind == "line":
            indent = len(text[line:line_end]) - len(text[line:line_end].lstrip())
            return line + indent, line_end
        if kind == "block":
            indent = len(text[line:line_end]) - len(text[line:line_end].lstrip())
            for _ in range(self.rng.randint(1, 3)):
                line_end = _line_end(text, min(len(text), line_end + 1))
            return line + indent, min(line_end, line + 400)
        return at, line_end


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def texts(path: Path) -> list[str]:
    """The texts of one language."""
    with path.open() as lines:
        return [json.loads(line)["text"] for line in lines]
