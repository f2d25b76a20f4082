r"""Fill in the middle: the text between a prefix and a suffix.

    model, tokenizer = edge.load("models/demo/mlx-fp16")
    completer = Completer(MlxSource(model), tokenizer)
    completer.complete("for key, value in d.", "():\n    print(key, value)\n", order="spm").text

The prompt has the model's special tokens (`edge.tokenizer.fim_tokens`) with nothing between them
and the parts, which are encoded one by one, so <fim_middle> in a source file is text. Stable Code
was trained on both orders equally often (Stable Code Technical Report, sections 3 and 4.4). Other
files of the repository come first, without their names, each followed by <repo_continuation>
(section 2 of the report).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edge.errors import EdgeError
from edge.formats.files import read_text, user_path
from edge.generate import CURSOR
from edge.generate.decode import Continued, TokensOrNone, TokenSource
from edge.generate.fim_stop import StopRules
from edge.generate.sampling import GREEDY, Sampling
from edge.generate.stream import TokenClock, stop_ids
from edge.tokenizer.detokenizer import REPLACEMENT_CHARACTER, StreamingDetokenizer
from edge.tokenizer.fim_tokens import FimTokens, Order, encode_parts
from edge.tokenizer.tokenizer import encode_text, special_ids

if TYPE_CHECKING:  # a single completion does not need it
    from edge.generate.batch import Batch

MAX_TOKENS = 128
CACHED_FILES = 64
# The suffix's share of the window where prefix and suffix together are too long.
SUFFIX_SHARE = 1 / 4
# Long text is cut in steps: otherwise every keystroke would shift the window and miss the cache.
TRIM_STEP_TOKENS = 64
# Code has about 3 characters per token; encoding megabytes that cannot fit would take seconds.
CHARACTERS_PER_POSITION, LEAST_CHARACTERS = 16, 100_000


@dataclass(frozen=True)
class Completion:
    """A middle and its figures, as in `Stats`; `generated_tokens` include text that was cut off.

    `reused_tokens` of the prompt were in the cache. `stopped_by` is "stop token", "length" or
    a rule of `fim_stop`.
    """

    text: str
    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    ttft_s: float
    total_s: float
    decode_tok_s: float | None
    stopped_by: str


@dataclass(frozen=True)
class MiddleEvent:
    """Text that no rule can remove any more; the last event has the completion.

    Text is empty where all may still be removed, and where a batch has no token yet.
    """

    text: str
    completion: Completion | None


class Source(Protocol):
    """What a completion needs of a source of tokens."""

    context_tokens: int

    def generate(self, ids: Sequence[int], max_tokens: int | None, sampling: Sampling) -> Continued:
        """The number of reused ids, and the ids that follow."""


class Completer:
    """Fills in the middle with a source of tokens; refuses models not trained for it.

    While a user types, PSM computes the end of the prefix and the whole suffix again; SPM, where
    the suffix comes first, only the end of the prefix.
    """

    def __init__(self, source: TokenSource | Batch, tokenizer: Any):
        self.source = source
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        positions = source.context_tokens
        self._most_characters = max(CHARACTERS_PER_POSITION * positions, LEAST_CHARACTERS)
        self._tokens = FimTokens.find(self._backend)
        self._stops = stop_ids(tokenizer) | special_ids(self._backend)
        # An editor sends the same files again with every keystroke.
        self._encode_file = lru_cache(CACHED_FILES)(self._file_ids)

    def complete(self, prefix: str, suffix: str = "", **options: Any) -> Completion:
        """The text between prefix and suffix; options and errors of `stream`."""
        *_, last = self.stream(prefix, suffix, **options)
        assert last.completion is not None
        return last.completion

    def stream(
        self,
        prefix: str,
        suffix: str = "",
        *,
        context: Sequence[str] = (),
        order: Order = "psm",
        max_tokens: int = MAX_TOKENS,
        max_lines: int | None = None,
        stop_rules: bool = True,
        sampling: Sampling = GREEDY,
        source: Source | None = None,
    ) -> Generator[MiddleEvent, None, None]:
        """Yields the text between prefix and suffix as it is generated.

        `context` holds other files of the repository, the most important last; the first are left
        out where they do not fit. `max_lines` does not count blank lines before the first code.
        `max_tokens` of 0 only fills the cache. Text whose line ends are all CRLF is
        completed as if they were LF, and the middle gets CRLF. `source` stands for the
        completer's own. Raises at the first step.
        """
        clock = TokenClock()
        line_end = "\r\n" if _is_crlf(prefix, suffix) else "\n"
        prefix = near_end(prefix.replace(line_end, "\n"), self._most_characters)
        suffix = suffix.replace(line_end, "\n")[: self._most_characters]
        ids = self._prompt(prefix, suffix, context, order, max_tokens)
        rules = StopRules(prefix, suffix, max_lines, stop_rules)
        reused, tokens = (source or self.source).generate(ids, max_tokens, sampling)
        shown = 0
        with contextlib.closing(self._middle(tokens, rules, clock)) as steps:
            for text, certain, stopped_by in steps:
                piece, shown = text[shown:certain], max(shown, certain)
                completion = None
                if stopped_by is not None:
                    completion = Completion(
                        text.replace("\n", line_end),
                        prompt_tokens=len(ids),
                        reused_tokens=reused,
                        generated_tokens=clock.tokens,
                        ttft_s=clock.ttft_s or 0.0,
                        total_s=(time.monotonic_ns() - clock.begin_ns) / 1e9,
                        decode_tok_s=clock.decode_tok_s,
                        stopped_by=stopped_by,
                    )
                yield MiddleEvent(piece.replace("\n", line_end), completion)

    def _prompt(
        self, prefix: str, suffix: str, context: Sequence[str], order: Order, max_tokens: int
    ) -> list[int]:
        limit, fim = self.source.context_tokens, self._tokens
        room = limit - max_tokens - fim.length
        if max_tokens < 0 or room < 1:
            raise EdgeError(
                f"max_tokens is {max_tokens} and the model's context has {limit} positions; "
                f"choose from 1 to {limit - fim.length - 1}."
            )
        if context and fim.repo is None:
            raise EdgeError(
                "the model's vocabulary has no <repo_continuation>, which joins the files of a "
                "repository; leave out the context."
            )
        before, after = encode_parts(self._backend, prefix, suffix)
        before, after, left = fit(before, after, room)
        files = self._files(context, left, _step_tokens(room))
        return fim.prompt(before, after, files, order)

    def _files(self, context: Sequence[str], room: int, step: int) -> list[int]:
        """The last files that fit whole; of a last one that does not fit alone its end."""
        files: list[int] = []
        for text in reversed(context):
            file = self._encode_file(text)
            if len(files) + len(file) > room:
                return files or _keep_end(file, room, step)
            files = file + files
        return files

    def _file_ids(self, text: str) -> list[int]:
        ids = encode_text(self._backend, near_end(text, self._most_characters))
        return [*ids, self._tokens.repo or 0]

    def _middle(
        self, tokens: TokensOrNone, rules: StopRules, clock: TokenClock
    ) -> Generator[tuple[str, int, str | None], None, None]:
        """After each token: the text so far, its certain length, and the reason of the end."""
        detokenizer = StreamingDetokenizer(self._tokenizer, continues=True)
        text, reason = "", "length"
        with contextlib.closing(tokens):
            for token in tokens:
                if token is None:
                    yield text, 0, None
                    continue
                clock.count()
                if token in self._stops:
                    reason = "stop token"
                    break
                text += detokenizer.add(token)
                stop = rules.find_stop(text)
                if stop is not None:
                    yield text[: stop.cut], stop.cut, stop.rule
                    return
                yield text, rules.find_certain(text), None
        rest = detokenizer.finish()
        # Drops a character that max_tokens cut in half.
        text += rest if reason == "stop token" else rest.rstrip(REPLACEMENT_CHARACTER)
        stop = rules.find_last_stop(text)
        if stop is not None:
            text, reason = text[: stop.cut], stop.rule
        yield text, len(text), reason


def fit(prefix: list[int], suffix: list[int], room: int) -> tuple[list[int], list[int], int]:
    """Prefix and suffix cut at their far ends to `room` tokens, and the room left for context.

    The suffix gets a quarter or what the prefix leaves; the prefix gets what the suffix leaves.
    """
    total, step = len(prefix) + len(suffix), _step_tokens(room)
    if total <= room:
        return prefix, suffix, room - total
    suffix_room = max(int(room * SUFFIX_SHARE), room - len(prefix))
    if len(suffix) > suffix_room:
        suffix = suffix[: suffix_room // step * step]
    return _keep_end(prefix, room - len(suffix), step), suffix, 0


def near_end(text: str, most: int) -> str:
    """The end of a text, of `most` to twice as many characters, moved in steps of `most`."""
    begin = max(0, len(text) - most) // most * most
    line_end = text.find("\n", begin, begin + most // 2) if begin else -1
    return text[begin if line_end < 0 else line_end + 1 :]


def _step_tokens(room: int) -> int:
    return max(1, min(TRIM_STEP_TOKENS, room // 8))


def _keep_end(ids: list[int], room: int, step: int) -> list[int]:
    """The end that fits, cut at a multiple of `step` tokens."""
    excess = max(0, len(ids) - room)
    return ids[-(-excess // step) * step :]


def _is_crlf(*texts: str) -> bool:
    """True if there are line ends and all of them are CRLF."""
    pairs = sum(text.count("\r\n") for text in texts)
    return pairs > 0 and all(sum(t.count(c) for t in texts) == pairs for c in "\r\n")


def split_at_mark(text: str, mark: str = CURSOR, where: str = "stdin") -> tuple[str, str]:
    """Text before and after the cursor mark, which must occur exactly once."""
    if not mark:
        raise EdgeError("--cursor is empty; give the mark that stands at the cursor.")
    prefix, *rest = text.split(mark)
    if len(rest) != 1:
        raise EdgeError(
            f"{where} has the cursor mark {mark} {len(rest)} times; put one where the middle "
            f"belongs, or choose another mark."
        )
    return prefix, rest[0]


def read_hole(place: str) -> tuple[str, str]:
    """Text before and after FILE:LINE[:COL]; lines end with LF or CRLF.

    Lines and columns (characters) count from 1; without a column it is the line's end. A text that
    ends with a line end has an empty line after it.
    """
    path, line, column = parse_place(place)
    text = read_text(user_path(path))
    lines = text.split("\n")
    if not 1 <= line <= len(lines):
        raise EdgeError(f"{path} has lines 1 to {len(lines)}, not {line}; choose one of them.")
    last = len(lines[line - 1]) + 1
    if line < len(lines) and lines[line - 1].endswith("\r"):
        last -= 1
    column = last if column is None else column
    if not 1 <= column <= last:
        raise EdgeError(
            f"line {line} of {path} has columns 1 to {last}, not {column}; choose one of them."
        )
    at = sum(len(before) + 1 for before in lines[: line - 1]) + column - 1
    return text[:at], text[at:]


def parse_place(place: str) -> tuple[Path, int, int | None]:
    """FILE:LINE[:COL]; in a name with colons the last one or two numbers count."""
    # Not \d, which matches the digits of every script.
    found = re.fullmatch(r"(.+?):([0-9]{1,9})(?::([0-9]{1,9}))?", place, re.DOTALL)
    if found is None:
        raise EdgeError(f"{place!r} has no line number; write FILE:LINE or FILE:LINE:COL.")
    name, line, column = found.groups()
    if column is not None and not Path(name).exists() and Path(f"{name}:{line}").exists():
        name, line, column = f"{name}:{line}", column, None  # the name ends with a number
    return Path(name), int(line), None if column is None else int(column)
