"""Rules that end a middle, one by one, and for any pieces of any text."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge.generate.fim_stop import StopRules

IN_F, RETURN = "def f():\n    ", "\n    return x\n"


def ending(prefix, suffix, text, find="find_stop", max_lines=None, heuristics=True):
    """The middle and the rule that ended it, None if none did."""
    stop = getattr(StopRules(prefix, suffix, max_lines, heuristics), find)(text)
    return (text, None) if stop is None else (text[: stop.cut], stop.rule)


ENDINGS = {
    "blank line": [
        ("x = ", "\n", "1\n   \ny", "1"),
        ("x = ", "\n", "1  \n\n", "1  "),  # spaces before the cut stay
        ("x", "\n", "\n\n\n\n", ""),  # nothing but blank lines is nothing
        # The line end stays where the suffix goes on in the line.
        ("a = 1\n", "b = 2\n", "c = 3\n\n\nd", "c = 3\n"),
        # Decided before the suffix, which would cut earlier.
        ("x = ", ";\n\nthe_longest_of_all_the_names = 1\n",
         "a;\n\nthe_longest_of_all_the_names = 1\n", "a;\n"),
    ],
    "indent": [
        (IN_F, "", "return 1\ndef g", "return 1"),
        ("def f():", "", "\n    return 1\nx", "\n    return 1"),  # after a header: the block below
        ("def f():\n", "", "    return 1\nx", "    return 1"),  # a blank line: the first code's
        (IN_F, "\n", "\nx = 1", ""),  # the cursor's own
        (IN_F, "", "a\n  b", "a"),  # decided at the first character of code
        ("f() {\n\t", "\n", "a;\n\tb;\n    c;", "a;\n\tb;"),  # tabs are eight columns
    ],
    "bracket": [
        ("f(g(", ")\n", "a))", "a)"),
        ("f(g(", "))\n", "a)", "a"),
        ("f() {\n    ", "\n}\n", "a();\n}", "a();"),
        ("f() {\n  if (", ") {\n  }\n}\n", "x)", "x"),
        ("f(", ', ")")\n', "a, b)", "a, b"),
        ("f(", ")\n}\n}\n", "a)", "a"),  # an unbalanced file
        ("# don't\nf(", ")\n", "a)", "a"),  # an apostrophe ends with its line
    ],
    "suffix": [
        (IN_F, RETURN, f"x = 1{RETURN}", "x = 1"),  # a whole line of the suffix
        ("x = 1", "\n\n\ny = 2\n", "\nz = 3\ny = 2\n", "\nz = 3"),  # blank lines may differ
        ("x = f(", "b, c\n", "a, b, c\n", "a, "),  # the rest of the cursor's line
        ("def f():\n    x = 1\n    ", RETURN, "return x\n", ""),  # the cursor's line becomes it
        # Many characters of the suffix need no line end.
        ("x = ", "\ndef test_the_second_thing(self):\n    pass\n",
         "1\ndef test_the_second_thing(sel", "1"),
    ],
    None: [
        (prefix, suffix, text, text)
        for prefix, suffix, text in (
            ("import os", "\n", "\n\nimport re\n"),  # blank lines before the code are part of it
            ("x", "\n", "\n\n\n"),
            ("x = ", "\n", "1\n    "),  # the blank line's end is not there yet
            (IN_F, "", "a\n  "),
            (IN_F, "", "if x:\n        y\n    z\n"),  # deeper and back
            ("x = ", "", "1\ny = 2\n"),  # no smaller indentation than none
            ("void f() {\n    ", "", "a();\n}\n"),  # a bracket that the suffix lacks
            ("f(", ")\n", "g(a)"),  # closes what the middle opened
            ("f(", ")\n", "')'"),  # text
            ('f("', '")\n', "a)"),  # text that the prefix began
            ('f("""a\n', '"""\n)\n', 'b)\n"c")'),  # over several lines
            ("f(", ")\n", '"\\")"'),  # an escaped quote
            ("x = 1  # ", "\n)", ":) "),  # the prefix opened nothing
            (IN_F, "\n    go()\n", "x = 1\n    go().y\n"),  # not the whole line
            (IN_F, "\n    go()\n", "x = 1\n        go()\n"),  # indented otherwise
            (IN_F, "\n    go()\n", "x = 1\n    go()"),  # its end is not there yet
            ("x = ", "\n})\n", "1\n})\n"),  # brackets alone say too little
        )
    ],
}  # fmt: skip
CASES = [(rule, *case) for rule, cases in ENDINGS.items() for case in cases]


@pytest.mark.parametrize(("rule", "prefix", "suffix", "text", "middle"), CASES)
def test_the_rule_that_ends_a_middle(rule, prefix, suffix, text, middle):
    assert ending(prefix, suffix, text) == (middle, rule)


@pytest.mark.parametrize(
    ("suffix", "text", "end"),
    [
        ("\n    return value\n", "x = 1\n    return value", ("x = 1", "suffix")),
        ("\n    return value\n", "x = 1\n    ret", ("x = 1\n    ret", None)),
        ("\n\n", "x = 1\n", ("x = 1\n", None)),  # a blank suffix is not a repetition
    ],
)
def test_a_repetition_that_was_cut_off_is_removed(suffix, text, end):
    assert ending(IN_F, suffix, text, "find_last_stop") == end


def test_max_lines_counts_from_the_first_code_also_without_the_other_rules():
    assert ending("x", "\n", "\n\na\nb\nc\n", max_lines=2) == ("\n\na\nb", "max lines")
    text = "1\n\n)\nx = 2\n"
    assert ending("(", ")", text, "find_last_stop", heuristics=False) == (text, None)
    assert ending("(", ")", text, heuristics=False, max_lines=2)[1] == "max lines"


CODE = st.text(alphabet="ab \n\t()[]{}'\"\\:#1", max_size=60)
WORDS = st.text("a()\n ='b", max_size=12)
SUFFIXES = WORDS | st.sampled_from(["\n    return xyz\n", " + some_long_name(of, this)\n"])
PIECES = WORDS | st.sampled_from(["\n    return", " xyz", " + some_long_", "name(of"])
TEXTS = st.lists(PIECES, max_size=5).map("".join)


@settings(max_examples=600)
@given(st.tuples(CODE, CODE, CODE) | st.tuples(WORDS, SUFFIXES, TEXTS),
       st.none() | st.integers(1, 4), st.sampled_from([True, True, False]))  # fmt: skip
@example(("x = ", "\n    return xyz\n", "1\n    return xyz\n"), None, True)
@example(("x = ", " + some_long_name(of, this)\n", "1 + some_long_name(of, this)"), None, True)
@example(("x = ", "\n", "1\n \n"), None, True)
def test_the_pieces_of_a_text_do_not_matter(texts, max_lines, heuristics):
    """A stop is found where it is decided, and text that was certain is never cut."""
    prefix, suffix, text = texts
    rules, certain = StopRules(prefix, suffix, max_lines, heuristics), ""
    stop = rules.find_stop(text)
    for end in range(len(text) + 1):
        part = text[:end]
        is_decided = stop is not None and end >= stop.decided
        assert rules.find_stop(part) == (stop if is_decided else None)
        last = rules.find_last_stop(part)
        final = part if last is None else part[: last.cut]
        assert final.startswith(certain)
        if not is_decided:
            now = part[: rules.find_certain(part)]
            assert final.startswith(now)
            certain = max(certain, now, key=len)
