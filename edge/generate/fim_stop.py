"""When a middle is finished: rules for base models that rarely say so themselves.

Pure functions over the text generated so far. A rule fires at the first character that decides
it, whatever comes later, so that the result does not depend on how the text arrives: `find_stop`
on the whole text and on every beginning of it agree. Of several rules the one that fires at the
earliest character counts. Nothing is stripped: what stands before the cut stays as generated.

The text here has LF line ends; `edge.generate.fim` sees to CRLF.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

# So many non-blank characters of the suffix are a repetition wherever they stand.
OVERLAP_CHARACTERS = 24
# At the very end of the text fewer do: a repetition that was cut off.
TAIL_CHARACTERS = 8
# More blank lines than this before any code: the model has nothing to say.
LEADING_BLANK_LINES = 2
TAB_COLUMNS = 8
CLOSING = {"(": ")", "[": "]", "{": "}"}
BLOCK_OPENERS = (":", "{", "(", "[")


class Stop(NamedTuple):
    """Where a middle ends, and by which rule; `decided` characters were needed to know."""

    decided: int
    cut: int
    rule: str


@dataclass(frozen=True)
class StopRules:
    """The rules for one hole.

    Attributes:
        prefix: all text before the cursor, LF line ends.
        suffix: all text after it.
        max_lines: lines that the middle may have; None for any number.
        heuristics: whether the blank-line, indent, bracket and overlap rules apply.
    """

    prefix: str
    suffix: str
    max_lines: int | None = None
    heuristics: bool = True

    @property
    def line(self) -> str:
        """The cursor's line up to the cursor."""
        return self.prefix.rpartition("\n")[2]

    @cached_property
    def brackets(self) -> tuple[str | None, list[str], int]:
        """The open quote, what would close the prefix, how many of that the suffix lacks.

        What closes comes innermost first.
        """
        quote, opened, _ = _scan(self.prefix, None)
        _, _, stray = _scan(self.suffix, quote)
        closers = [CLOSING[bracket] for bracket in reversed(opened)]
        return quote, closers, _missing_closers(closers, stray)

    def find_stop(self, text: str) -> Stop | None:
        """The end of the middle, if the text generated so far decides it."""
        rules: list[Callable[[StopRules, str], Stop | None]] = [_max_lines]
        if self.heuristics:
            rules += [_bracket, _suffix_line, _suffix_characters, _indent, _blank_line]
        stops = [stop for rule in rules if (stop := rule(self, text)) is not None]
        return min(stops, key=lambda stop: (stop.decided, stop.cut), default=None)

    def find_last_stop(self, text: str) -> Stop | None:
        """The same when nothing will follow: the tail may be a repetition that was cut off."""
        stop = self.find_stop(text)
        if stop is not None or not self.heuristics:
            return stop
        line = _suffix_line(self, text + "\n")
        return line if line is not None else _suffix_tail(self, text)

    def find_certain(self, text: str) -> int:
        """How many first characters no rule can cut any more, whatever follows.

        Args:
            text: generated so far; `find_stop` has found no end in it.
        """
        if not self.heuristics:
            return len(text)
        if not text.strip():
            return 0
        blank = _before_line(self, text, len(text)) if _at_line_begin(text) else len(text)
        return min(blank, _line_under_way(self, text), len(text) - _overlap(self, text))


def _max_lines(rules: StopRules, text: str) -> Stop | None:
    """The line end that would begin a line too many; blank lines before any code are free."""
    if rules.max_lines is None:
        return None
    ends = (newline for newline in _newlines(text) if text[:newline].strip())
    for count, newline in enumerate(ends, start=1):
        if count == rules.max_lines:
            return Stop(newline + 1, newline, "max lines")
    return None


def _blank_line(rules: StopRules, text: str) -> Stop | None:
    """A blank line after some code, or nothing but blank lines."""
    blank = 0
    for begin, line in _whole_lines(text):
        if line.strip():
            blank = 0
        elif text[:begin].strip():
            return Stop(begin + len(line) + 1, _before_line(rules, text, begin), "blank line")
        elif begin and (blank := blank + 1) > LEADING_BLANK_LINES:
            return Stop(begin + len(line) + 1, 0, "blank line")
    return None


def _indent(rules: StopRules, text: str) -> Stop | None:
    """A line indented less than the block that the cursor stands in.

    The block is the cursor's line, or if that is blank so far, the first line with code; after
    a line that opens a block (`def f():`) the next line with code, if it is deeper. A line that
    begins with a closing bracket is the bracket rule's, and code may go on at its depth.
    """
    block = _block_columns(rules, text)
    if block is None:
        return None
    for begin, line in _begun_lines(text):
        first = len(_indentation(line))
        columns = _columns(line[:first])
        if columns >= block:
            continue
        if line[first] in ")]}":
            block = columns
            continue
        return Stop(begin + first + 1, _before_line(rules, text, begin), "indent")
    return None


def _block_columns(rules: StopRules, text: str) -> int | None:
    """How far the cursor's block is indented; None while that is open."""
    line = rules.line
    if not line.strip():
        line += text
        if not line.strip():
            return None
        code = line[: len(line) - len(line.lstrip())].rpartition("\n")[2]
        return max(_columns(rules.line), _columns(code))
    columns = _columns(_indentation(line))
    opens = line.rstrip().endswith(BLOCK_OPENERS) and not text.partition("\n")[0].strip()
    following = next(_begun_lines(text), None) if opens else None
    return columns if following is None else max(columns, _columns(_indentation(following[1])))


def _bracket(rules: StopRules, text: str) -> Stop | None:
    """A closing bracket too many: the suffix has the one that closes what the prefix opened."""
    quote, closers, allowed = rules.brackets
    depth = closed = 0
    for at, bracket in _brackets(text, quote):
        if bracket in CLOSING:
            depth += 1
        elif depth:
            depth -= 1
        elif closed < len(closers) and bracket == closers[closed]:
            if closed == allowed:
                return Stop(at + 1, _before_token(rules, text, at), "bracket")
            closed += 1
    return None


def _missing_closers(closers: list[str], stray: list[str]) -> int:
    """How many brackets that the prefix leaves open the suffix does not close.

    Args:
        closers: what would close the prefix, innermost first.
        stray: the suffix's closing brackets that nothing in it opens, in order.
    """
    for missing in range(len(closers) + 1):
        if closers[missing:] == stray:
            return missing
    for missing in range(len(closers)):  # an unbalanced file; the suffix's beginning counts
        if all(a == b for a, b in zip(closers[missing:], stray, strict=False)):
            return missing
    return len(closers)


def _suffix_line(rules: StopRules, text: str) -> Stop | None:
    """A whole line that is the suffix's first line with code on it.

    Lines of nothing but brackets say too little; they are the bracket rule's.
    """
    rest = rules.suffix.partition("\n")[0]
    if rest.strip():
        return _rest_of_line(rules, text, rest)
    wanted = _first_code_line(rules)
    if not wanted:
        return None
    for begin, line in _whole_lines(text):
        if (line if begin else rules.line + line) == wanted and (begin or not rules.line.strip()):
            return Stop(begin + len(line) + 1, _before_line(rules, text, begin), "suffix")
    return None


def _first_code_line(rules: StopRules) -> str:
    """The suffix's first line with code below the cursor's, "" if that says too little."""
    rest, _, below = rules.suffix.partition("\n")
    line = "" if rest.strip() else next((line for line in below.split("\n") if line.strip()), "")
    return line if any(c.isalnum() for c in line) else ""


def _rest_of_line(rules: StopRules, text: str, rest: str) -> Stop | None:
    """What follows the cursor on its line, followed by a line end."""
    if not any(c.isalnum() for c in rest):
        return None
    at = text.find(rest + "\n")
    return None if at < 0 else Stop(at + len(rest) + 1, at, "suffix")


def _suffix_characters(rules: StopRules, text: str) -> Stop | None:
    """The suffix's beginning, long enough to be no coincidence."""
    wanted = _beginning(rules.suffix, OVERLAP_CHARACTERS)
    at = text.find(wanted) if wanted else -1
    return None if at < 0 else Stop(at + len(wanted), at, "suffix")


def _suffix_tail(rules: StopRules, text: str) -> Stop | None:
    """The text's end that is the suffix's beginning."""
    least = len(_beginning(rules.suffix, TAIL_CHARACTERS))
    for length in range(min(len(text), len(rules.suffix)), max(least, 1) - 1, -1):
        if least and text.endswith(rules.suffix[:length]):
            return Stop(len(text), len(text) - length, "suffix")
    return None


def _at_line_begin(text: str) -> bool:
    """Whether nothing but blanks stands between the last line end and the text's end."""
    return "\n" in text[len(text.rstrip()) :]


def _line_under_way(rules: StopRules, text: str) -> int:
    """Where a last line would be cut that may become the suffix's first; else the text's end."""
    begin = text.rfind("\n") + 1
    wanted = _first_code_line(rules)
    line = text[begin:] if begin else rules.line + text
    if not wanted.startswith(line) or (not begin and rules.line.strip()):
        return len(text)
    return _before_line(rules, text, begin)


def _overlap(rules: StopRules, text: str) -> int:
    """How many last characters may be the beginning of a repetition of the suffix."""
    rest = rules.suffix.partition("\n")[0] + "\n"
    wanted = _beginning(rules.suffix, OVERLAP_CHARACTERS) or rules.suffix
    longest = max(len(rest), len(wanted))
    tails = (text[-n:] for n in range(min(len(text), longest), 0, -1))
    return next((len(t) for t in tails if rest.startswith(t) or wanted.startswith(t)), 0)


def _beginning(text: str, characters: int) -> str:
    """The shortest beginning with so many non-blank characters, "" if it has fewer."""
    found = list(_nth(re.finditer(r"\S", text), characters))
    return text[: found[0].end()] if found else ""


def _nth(items: Iterator[re.Match[str]], n: int) -> Iterator[re.Match[str]]:
    for count, item in enumerate(items, start=1):
        if count == n:
            yield item
            return


def _before_line(rules: StopRules, text: str, begin: int) -> int:
    """Where the text ends if the line that begins here is left out.

    The line end before it, and blank lines, go too where the suffix brings its own; where the
    suffix goes on in the cursor's line, one line end stays to keep them apart.
    """
    code = len(text[:begin].rstrip())
    end = text.find("\n", code, begin)
    if end < 0:
        return begin
    return end + 1 if rules.suffix.partition("\n")[0].strip() else end


def _before_token(rules: StopRules, text: str, at: int) -> int:
    """The same for a token: with the line, if it is the first thing on it."""
    begin = text.rfind("\n", 0, at) + 1
    return at if text[begin:at].strip() or not begin else _before_line(rules, text, begin)


def _newlines(text: str) -> Iterator[int]:
    return (m.start() for m in re.finditer("\n", text))


def _whole_lines(text: str) -> Iterator[tuple[int, str]]:
    """Every line that has its end: where it begins, and what it holds."""
    begin = 0
    for newline in _newlines(text):
        yield begin, text[begin:newline]
        begin = newline + 1


def _begun_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines after the first of which some code is there, the last one perhaps in part."""
    lines = ((m.end(), text[m.end() :].partition("\n")[0]) for m in re.finditer("\n", text))
    return ((begin, line) for begin, line in lines if line.strip())


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _columns(indentation: str) -> int:
    return len(indentation.expandtabs(TAB_COLUMNS))


def _scan(text: str, quote: str | None) -> tuple[str | None, list[str], list[str]]:
    """The open quote at the end, brackets left open, and closing ones that nothing opened."""
    opened: list[str] = []
    stray: list[str] = []
    reader = _BracketReader(quote)
    for at in range(len(text)):
        bracket = reader.read(text, at)
        if bracket in CLOSING:
            opened.append(bracket)
        elif bracket and opened:
            opened.pop()
        elif bracket:
            stray.append(bracket)
    return reader.quote, opened, stray


def _brackets(text: str, quote: str | None) -> Iterator[tuple[int, str]]:
    """Brackets outside quotes, and where they stand."""
    reader = _BracketReader(quote)
    for at in range(len(text)):
        if bracket := reader.read(text, at):
            yield at, bracket


class _BracketReader:
    """Reads code of any language from left to right; knows quotes, not comments.

    A quote ends with its line at the latest (an apostrophe in a comment), a triple one does not.
    """

    def __init__(self, quote: str | None):
        self.quote = quote
        self._since = 0  # where the quote may end, or a triple one may begin again
        self._escaped = False

    def read(self, text: str, at: int) -> str:
        """The bracket at this place, or ""."""
        c = text[at]
        if self.quote is None:
            if c in "\"'":
                self._open(text, at)
            return c if c in "()[]{}" else ""
        if self._escaped or c == "\\":
            self._escaped = not self._escaped and c == "\\"
        elif c == "\n" and len(self.quote) == 1:
            self.quote, self._since = None, at + 1
        elif c == self.quote[0] and at + 1 - len(self.quote) >= self._since:
            self._close(text, at)
        return ""

    def _open(self, text: str, at: int) -> None:
        triple = at - 2 >= self._since and text[at - 2 : at] == text[at] * 2
        self.quote = text[at] * (3 if triple else 1)
        self._since = at + 1

    def _close(self, text: str, at: int) -> None:
        assert self.quote is not None
        if text[at + 1 - len(self.quote) : at + 1] == self.quote:
            # An empty string may turn out to be the beginning of a triple quote.
            empty = len(self.quote) == 1 and at == self._since
            self.quote, self._since = None, at - 1 if empty else at + 1
