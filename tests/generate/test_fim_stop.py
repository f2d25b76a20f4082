"""Where a middle ends, rule by rule, and that it never depends on how the text arrives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.generate.fim_stop import Stop, StopRules


def ending(prefix, suffix, text, **options):
    """The middle and the rule that ended it, None if none did."""
    stop = StopRules(prefix, suffix, **options).find_stop(text)
    return (text, None) if stop is None else (text[: stop.cut], stop.rule)


def last_ending(prefix, suffix, text):
    stop = StopRules(prefix, suffix).find_last_stop(text)
    return (text, None) if stop is None else (text[: stop.cut], stop.rule)


IN_F = "def f():\n    "


# --- blank line


def test_a_blank_line_after_code_ends_the_middle():
    assert ending("x = ", "\n", "1\n\ny = 2") == ("1", "blank line")


def test_a_line_of_spaces_is_blank():
    assert ending("x = ", "\n", "1\n   \ny") == ("1", "blank line")


def test_blank_lines_before_the_code_are_part_of_it():
    assert ending("import os", "\n", "\n\nimport re\n") == ("\n\nimport re\n", None)


def test_nothing_but_blank_lines_is_nothing():
    assert ending("x", "\n", "\n\n\n\n") == ("", "blank line")
    assert ending("x", "\n", "\n\n\n") == ("\n\n\n", None)


def test_a_blank_line_is_one_only_when_its_end_is_there():
    assert ending("x = ", "\n", "1\n    ")[1] is None


# --- indent


def test_a_smaller_indentation_ends_the_block():
    assert ending(IN_F, "", "return 1\ndef g") == ("return 1", "indent")


def test_it_is_decided_at_the_first_character_of_code():
    assert StopRules(IN_F, "").find_stop("a\n  b") == Stop(5, 1, "indent")
    assert StopRules(IN_F, "").find_stop("a\n  ") is None


def test_deeper_lines_and_back_are_the_block():
    text = "if x:\n        y\n    z\n"
    assert ending(IN_F, "", text) == (text, None)


def test_there_is_no_smaller_indentation_than_none():
    text = "1\ny = 2\n"
    assert ending("x = ", "", text) == (text, None)


def test_the_cursor_after_a_header_is_in_the_block_below():
    assert ending("def f():", "", "\n    return 1\nx") == ("\n    return 1", "indent")


def test_a_blank_cursor_line_takes_its_block_from_the_first_code():
    assert ending("def f():\n", "", "    return 1\nx") == ("    return 1", "indent")


def test_leaving_the_cursors_own_indentation_is_leaving_the_block():
    assert ending(IN_F, "\n", "\nx = 1") == ("", "indent")


def test_tabs_count_as_eight_columns():
    assert ending("f() {\n\t", "\n", "a;\n\tb;\n    c;") == ("a;\n\tb;", "indent")


def test_a_closing_bracket_that_the_suffix_lacks_belongs_to_the_middle():
    text = "a();\n}\n"
    assert ending("void f() {\n    ", "", text) == (text, None)


# --- bracket


@pytest.mark.parametrize(
    ("prefix", "suffix", "text", "middle"),
    [
        ("f(", ")\n", "a, b)", "a, b"),
        ("f(g(", ")\n", "a))", "a)"),
        ("f(g(", "))\n", "a)", "a"),
        ("x = [", "]", "1, (2), 3]", "1, (2), 3"),
        ("f() {\n    ", "\n}\n", "a();\n}", "a();"),
        ("f() {\n  if (", ") {\n  }\n}\n", "x)", "x"),
        ("f(", ', ")")\n', "a, b)", "a, b"),
        ("f(", ")\n}\n}\n", "a)", "a"),  # an unbalanced file
    ],
)
def test_a_bracket_that_the_suffix_has_ends_the_middle(prefix, suffix, text, middle):
    assert ending(prefix, suffix, text) == (middle, "bracket")


@pytest.mark.parametrize(
    ("prefix", "suffix", "text"),
    [
        ("f(", "\n", "a, b)"),  # the suffix lacks it
        ("f(", ")\n", "g(a)"),  # closes what the middle opened
        ("f(", ")\n", "')'"),  # text
        ('f("', '")\n', "a)"),  # text that the prefix began
        ('f("""a\n', '"""\n)\n', 'b)\n"c")'),  # over several lines
        ("f(", ")\n", '"\\")"'),  # an escaped quote
        ("# it's (", ")\n", "x"),
        ("x = 1  # ", "\n)", ":) "),  # the prefix opened nothing
    ],
)
def test_other_brackets_do_not(prefix, suffix, text):
    assert ending(prefix, suffix, text) == (text, None)


def test_an_apostrophe_ends_with_its_line():
    assert ending("# don't\nf(", ")\n", "a)") == ("a", "bracket")


# --- suffix


def test_a_whole_line_of_the_suffix_ends_the_middle():
    suffix = "\n    return x\n"
    assert ending(IN_F, suffix, "x = 1\n    return x\n") == ("x = 1", "suffix")


def test_the_line_must_be_whole_and_indented_the_same():
    suffix = "\n    go()\n"
    for text in ("x = 1\n    go().y\n", "x = 1\n        go()\n", "x = 1\n    go()"):
        assert ending(IN_F, suffix, text) == (text, None)


def test_blank_lines_before_it_may_differ():
    assert ending("x = 1", "\n\n\ny = 2\n", "\nz = 3\ny = 2\n") == ("\nz = 3", "suffix")


def test_the_rest_of_the_cursors_line_ends_the_middle():
    assert ending("x = f(", "b, c\n", "a, b, c\n") == ("a, ", "suffix")


def test_many_characters_of_the_suffix_need_no_line_end():
    suffix = "\n\ndef test_the_second_thing(self):\n    pass\n"
    text = "1\n\ndef test_the_second_thing(sel"
    rules = StopRules("x = ", suffix, heuristics=True)
    assert rules.find_stop("1" + suffix[:24]).rule == "blank line"  # what comes first counts
    assert ending("x = ", suffix[1:], text.replace("\n\n", "\n")) == ("1", "suffix")


def test_at_the_very_end_a_cut_off_repetition_goes_too():
    suffix = "\n    return value\n"
    assert last_ending(IN_F, suffix, "x = 1\n    return va") == ("x = 1", "suffix")
    assert last_ending(IN_F, suffix, "x = 1\n    return value") == ("x = 1", "suffix")
    assert last_ending(IN_F, suffix, "x = 1\n    ret") == ("x = 1\n    ret", None)


def test_a_blank_suffix_is_no_repetition():
    text = "x = 1\n"
    assert last_ending(IN_F, "\n\n", text) == (text, None)


def test_the_cursors_line_may_become_the_suffixs_line():
    prefix, suffix = "def f():\n    x = 1\n    ", "\n    return x\n"
    assert ending(prefix, suffix, "return x\n") == ("", "suffix")


@pytest.mark.parametrize(("suffix", "text"), [("\n})\n", "1\n})\n"), (")\n", "f()\n")])
def test_lines_of_brackets_alone_say_too_little(suffix, text):
    assert ending("x = ", suffix, text) == (text, None)


def test_what_is_decided_first_counts_even_if_another_rule_would_cut_before():
    suffix = ";\n\nthe_longest_of_all_the_names = 1\n"
    assert ending("x = ", suffix, "a" + suffix) == ("a;\n", "blank line")


# --- lines


def test_max_lines_counts_from_the_first_code():
    assert ending("x", "\n", "\n\na\nb\nc\n", max_lines=2) == ("\n\na\nb", "max lines")


def test_max_lines_holds_without_the_other_rules():
    text = "1\n\n)\nx = 2\n"
    assert ending("(", ")", text, heuristics=False) == (text, None)
    assert ending("(", ")", text, heuristics=False, max_lines=2)[1] == "max lines"
    assert StopRules("(", ")", heuristics=False).find_last_stop(text) is None


# --- where the line ends go


def test_the_line_end_stays_where_the_suffix_goes_on_in_the_line():
    assert ending("a = 1\n", "b = 2\n", "c = 3\n\n\nd") == ("c = 3\n", "blank line")


def test_spaces_before_the_cut_stay():
    assert ending("x = ", "\n", "1  \n\n") == ("1  ", "blank line")


# --- properties

CODE = st.text(alphabet="ab \n\t()[]{}'\"\\:#1", max_size=60)
HOLES = st.builds(
    StopRules, CODE, CODE, st.none() | st.integers(1, 4), st.sampled_from([True, True, False])
)


@settings(max_examples=400)
@given(HOLES, CODE)
def test_the_stop_does_not_depend_on_how_the_text_arrives(rules, text):
    stop = rules.find_stop(text)
    for end in range(len(text) + 1):
        seen = rules.find_stop(text[:end])
        assert seen == (stop if stop is not None and end >= stop.decided else None)


@settings(max_examples=400)
@given(HOLES, CODE)
def test_a_middle_is_a_beginning_of_the_text(rules, text):
    stop = rules.find_last_stop(text)
    assert stop is None or 0 <= stop.cut <= len(text)


@given(CODE, CODE)
def test_what_comes_before_a_repeated_suffix_is_kept_or_cut_but_never_runs_on(prefix, middle):
    suffix = "\nreturn the_whole_of_the_result\n"
    stop = StopRules(prefix, suffix).find_stop(middle + suffix + "more")
    assert stop is not None
    assert stop.cut <= len(middle)


# --- what is certain


SOME = st.text("a()\n ='b", max_size=12)


@settings(max_examples=400)
@given(SOME, SOME | st.sampled_from(["\n    return xyz\n", " + some_long_name(of, this)\n"]),
       st.lists(SOME | st.sampled_from(["\n    return", " xyz", " + some_long_", "name(of"]),
                max_size=5),
       st.none() | st.integers(1, 3), st.booleans())  # fmt: skip
def test_no_rule_takes_back_what_is_certain(prefix, suffix, pieces, max_lines, heuristics):
    rules = StopRules(prefix, suffix, max_lines, heuristics)
    text, certain = "", ""
    for piece in "".join(pieces):
        text += piece
        stop = rules.find_stop(text)
        if stop is not None:
            assert text[: stop.cut].startswith(certain)
            return
        last = rules.find_last_stop(text)
        now = text[: rules.find_certain(text)]
        final = text if last is None else text[: last.cut]
        assert final.startswith(certain) and final.startswith(now)
        certain = max(certain, now, key=len)


def test_text_is_certain_soon_after_it_came():
    rules = StopRules("def f(x):\n    ", "\n\ndef g():\n    pass\n")
    assert rules.find_certain("y = 1") == 5
    assert rules.find_certain("y = 1\n") == 5  # a blank line would take the line end too
    assert rules.find_certain("y = 1\n    z") == 11
    assert rules.find_certain("y = 1\n    z\ndef g") == 11
    assert StopRules("", "", None, False).find_certain(" \n\n") == 3
