"""Rules that end a middle, for base models, which rarely end it themselves.

A rule fires at the first character that decides it, whatever follows, so the result does not
depend on how the text is split into pieces. If several rules fire, the earliest character counts.
Text before the cut stays as generated. Line ends here are LF.
"""

import re
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

# This many non-blank characters of the suffix are a repetition anywhere in the text.
OVERLAP_CHARACTERS = 24
# At the end of the text fewer are enough: a repetition that was cut off.
TAIL_CHARACTERS = 8
# With more blank lines than this before any code the middle is empty.
LEADING_BLANK_LINES = 2
TAB_COLUMNS = 8
CLOSING = {"(": ")", "[": "]", "{": "}"}
BLOCK_OPENERS = (":", "{", "(", "[")
Brackets = list[tuple[int, str]]  # with their places
QUOTE_OR_BRACKET = re.compile(r"\"\"\"|'''|[\"'()\[\]{}]")


class Stop(NamedTuple):
    """The place where a middle ends, and the rule; `decided` is the length that decides it."""

    decided: int
    cut: int
    rule: str


class StopRules:
    """The rules for one hole; `heuristics` turns on all rules but `max_lines`."""

    def __init__(self, prefix: str, suffix: str, max_lines: int | None, heuristics: bool):
        self.prefix, self.suffix = prefix, suffix
        self.max_lines, self.heuristics = max_lines, heuristics
        # The cursor's line before the cursor, and after it, "" if that is blank.
        self.line = prefix.rpartition("\n")[2]
        rest, *below = suffix.split("\n")
        self.rest = rest if rest.strip() else ""
        # The first line with code below the cursor's, "" if it has no words.
        next_code = next((line for line in below if line.strip()), "")
        self.next_code = next_code if _has_words(next_code) and not self.rest else ""
        self.overlap = _beginning(suffix, OVERLAP_CHARACTERS)

    def find_stop(self, text: str) -> Stop | None:
        """The end of the middle if the text so far decides it."""
        rules: list[Callable[[StopRules, str], Stop | None]] = [_max_lines]
        if self.heuristics:
            rules += [_bracket, _suffix_line, _suffix_characters, _indent, _blank_line]
        stops = [stop for rule in rules if (stop := rule(self, text)) is not None]
        return min(stops, key=lambda stop: (stop.decided, stop.cut), default=None)

    def find_last_stop(self, text: str) -> Stop | None:
        """The end of a text that is complete: its tail may be a repetition that was cut off."""
        stop = self.find_stop(text)
        if stop is not None or not self.heuristics:
            return stop
        return _suffix_line(self, text + "\n") or _suffix_tail(self, text)

    def find_certain(self, text: str) -> int:
        """Number of characters that no rule can cut any more, for a text without a stop."""
        if not self.heuristics:
            return len(text)
        if not text.strip():
            return 0
        at_line_begin = "\n" in text[len(text.rstrip()) :]
        blank = _before_line(self, text, len(text)) if at_line_begin else len(text)
        return min(blank, _line_under_way(self, text), len(text) - _overlap(self, text))

    @cached_property
    def brackets(self) -> tuple[str | None, list[str], int]:
        """The open quote, the prefix's closers (innermost first), how many the suffix lacks."""
        found, quote = _brackets(self.prefix, None)
        opened, _ = _unbalanced(found)
        _, stray = _unbalanced(_brackets(self.suffix, quote)[0])
        closers = [CLOSING[bracket] for bracket in reversed(opened)]
        return quote, closers, _missing_closers(closers, [bracket for _, bracket in stray])


def _max_lines(rules: StopRules, text: str) -> Stop | None:
    """The end of the last line allowed; blank lines before the first code do not count."""
    count = 0
    for begin, line in _lines(text)[:-1]:
        count += bool(count or line.strip())
        if count and count == rules.max_lines:
            return Stop(begin + len(line) + 1, begin + len(line), "max lines")
    return None


def _blank_line(rules: StopRules, text: str) -> Stop | None:
    """A blank line after code, or too many blank lines before it."""
    blank, code = 0, False
    for begin, line in _lines(text)[:-1]:
        end = begin + len(line) + 1
        if line.strip():
            code = True
        elif code:
            return Stop(end, _before_line(rules, text, begin), "blank line")
        elif begin:
            blank += 1
            if blank > LEADING_BLANK_LINES:
                return Stop(end, 0, "blank line")
    return None


def _indent(rules: StopRules, text: str) -> Stop | None:
    """A line indented less than the cursor's block, unless it begins with a closing bracket."""
    block = _block_columns(rules, text)
    if block is None:
        return None
    for begin, line in _code_lines(text):
        columns = _columns(line)
        if columns >= block:
            continue
        first = len(line) - len(line.lstrip())
        if line[first] in ")]}":
            block = columns
            continue
        return Stop(begin + first + 1, _before_line(rules, text, begin), "indent")
    return None


def _block_columns(rules: StopRules, text: str) -> int | None:
    """Indentation of the cursor's block; None until it is known.

    The block is that of the cursor's line or, if that is blank, of the first line with code.
    After a line that opens a block (`def f():`) it is that of the next line, if deeper.
    """
    first_line = text.partition("\n")[0]
    if rules.line.strip():
        opens = rules.line.rstrip().endswith(BLOCK_OPENERS) and not first_line.strip()
        below = [_columns(line) for _, line in _code_lines(text)[:1]] if opens else []
        return max([_columns(rules.line), *below])
    code = next((line for _, line in _lines(rules.line + text) if line.strip()), None)
    return None if code is None else max(len(rules.line.expandtabs(TAB_COLUMNS)), _columns(code))


def _lines(text: str) -> list[tuple[int, str]]:
    """The place of each line and its text; the last line may not be complete."""
    return [(found.start(), found[0]) for found in re.finditer("^.*$", text, re.MULTILINE)]


def _code_lines(text: str) -> list[tuple[int, str]]:
    """Lines with code after the first line."""
    return [(begin, line) for begin, line in _lines(text)[1:] if line.strip()]


def _columns(line: str) -> int:
    return len(line[: len(line) - len(line.lstrip())].expandtabs(TAB_COLUMNS))


def _before_line(rules: StopRules, text: str, begin: int) -> int:
    """The end of the text without the line that begins here and the line ends before it."""
    end = text.find("\n", len(text[:begin].rstrip()), begin)
    if end < 0:
        return begin
    return end + 1 if rules.rest else end  # the suffix goes on in the cursor's line


def _suffix_line(rules: StopRules, text: str) -> Stop | None:
    """A line equal to the suffix's first line with code, or to the rest of the cursor's line."""
    if rules.rest:
        at = text.find(rules.rest + "\n") if _has_words(rules.rest) else -1
        return None if at < 0 else Stop(at + len(rules.rest) + 1, at, "suffix")
    for begin, line in _lines(text)[:-1] if rules.next_code else []:
        if begin == 0 and rules.line.strip():
            continue
        if (line if begin else rules.line + line) == rules.next_code:
            return Stop(begin + len(line) + 1, _before_line(rules, text, begin), "suffix")
    return None


def _suffix_characters(rules: StopRules, text: str) -> Stop | None:
    at = text.find(rules.overlap) if rules.overlap else -1
    return None if at < 0 else Stop(at + len(rules.overlap), at, "suffix")


def _suffix_tail(rules: StopRules, text: str) -> Stop | None:
    least = len(_beginning(rules.suffix, TAIL_CHARACTERS))
    for length in range(min(len(text), len(rules.suffix)), least - 1, -1) if least else ():
        if text.endswith(rules.suffix[:length]):
            return Stop(len(text), len(text) - length, "suffix")
    return None


def _line_under_way(rules: StopRules, text: str) -> int:
    """The cut before a last line that may become the suffix's first; else the text's end."""
    begin = text.rfind("\n") + 1
    line = text[begin:] if begin else rules.line + text
    if not rules.next_code.startswith(line) or (not begin and rules.line.strip()):
        return len(text)
    return _before_line(rules, text, begin)


def _overlap(rules: StopRules, text: str) -> int:
    """Length of the tail that may begin a repetition of the suffix."""
    wanted = (rules.suffix.partition("\n")[0] + "\n", rules.overlap or rules.suffix)
    longest = max(map(len, wanted))
    tails = (text[-length:] for length in range(min(len(text), longest), 0, -1))
    return next((len(tail) for tail in tails if any(w.startswith(tail) for w in wanted)), 0)


def _beginning(text: str, characters: int) -> str:
    """The shortest beginning with this many non-blank characters, "" if there are fewer."""
    found = re.match(rf"(?:\s*\S){{{characters}}}", text)
    return found[0] if found else ""


def _has_words(line: str) -> bool:
    return any(character.isalnum() for character in line)


def _bracket(rules: StopRules, text: str) -> Stop | None:
    """A closing bracket that the suffix has already, for one opened in the prefix."""
    quote, closers, allowed = rules.brackets
    _, stray = _unbalanced(_brackets(text, quote)[0])
    closed = 0
    for at, bracket in stray:
        if closed < len(closers) and bracket == closers[closed]:
            if closed == allowed:
                begin = text.rfind("\n", 0, at) + 1
                alone = begin and not text[begin:at].strip()  # the first thing on its line
                cut = _before_line(rules, text, begin) if alone else at
                return Stop(at + 1, cut, "bracket")
            closed += 1
    return None


def _missing_closers(closers: list[str], stray: list[str]) -> int:
    """Number of brackets opened in the prefix (innermost first) that the suffix does not close."""
    tails = [closers[missing:] for missing in range(len(closers) + 1)]
    if stray in tails:
        return tails.index(stray)
    # In an unbalanced file the suffix's beginning counts.
    return next(i for i, t in enumerate(tails) if t[: len(stray)] == stray[: len(t)])


def _unbalanced(brackets: Brackets) -> tuple[list[str], Brackets]:
    """Brackets left open, and closing brackets (with places) that nothing opened."""
    opened: list[str] = []
    stray: Brackets = []
    for at, bracket in brackets:
        if bracket in CLOSING:
            opened.append(bracket)
        elif opened:
            opened.pop()
        else:
            stray.append((at, bracket))
    return opened, stray


def _brackets(text: str, quote: str | None) -> tuple[Brackets, str | None]:
    """Brackets outside strings, and the quote open at the end; `quote` is open at the start."""
    brackets: Brackets = []
    at = 0
    while True:
        if quote is not None:
            at = _end_of_string(text, at, quote)
            if at < 0:
                return brackets, quote
        found = QUOTE_OR_BRACKET.search(text, at)
        if found is None:
            return brackets, None
        at, quote = found.end(), None
        if found[0] in "()[]{}":
            brackets.append((found.start(), found[0]))
        else:
            quote = found[0]


def _end_of_string(text: str, begin: int, quote: str) -> int:
    """The end of a string, -1 if it has none; short strings end with the line (apostrophes)."""
    ends = quote if len(quote) > 1 else f"{quote}|\n"
    for found in re.compile(rf"\\.|{ends}", re.DOTALL).finditer(text, begin):
        if not found[0].startswith("\\"):
            return found.end()
    return -1
