"""What the small functions of the dialogues do: tasks of tasks.txt, and compositions.

A template is what a function does in one wording, its code and a test. The wordings with a * in
tasks.txt and an eighth of the compositions are held out: a model has met the task in other words,
or the parts of the composition apart.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

TASKS = Path(__file__).with_name("tasks.txt")
PYTHON, JAVASCRIPT = "python", "javascript"
# Names that an expression in Python shares with none in JavaScript.
ONLY_PYTHON = re.compile(r"\b(in|if|not|for|sum|len|str|int|abs|sorted|max|min|reversed)\b|\.|==")
NUMBERS = "[1, -2, 3, 4, 30, 0, 42, -7]"

# Compositions: words of the numbers and the condition, of what is taken of each, and of the end.
FILTERS = {
    "even": ("n % 2 == 0", "n % 2 === 0"), "odd": ("n % 2 == 1", "n % 2 !== 0"),
    "positive": ("n > 0", "n > 0"), "negative": ("n < 0", "n < 0"),
    "nonzero": ("n != 0", "n !== 0"),
}  # fmt: skip
LIMITS = {
    "greater than {k}": "n > {k}", "smaller than {k}": "n < {k}", "of at least {k}": "n >= {k}",
    "divisible by {k}": "n % {k} == 0", "of at most {k}": "n <= {k}",
}  # fmt: skip
MAPS = {
    "": ("n", "n"), "squares": ("n * n", "n * n"), "cubes": ("n ** 3", "n ** 3"),
    "doubles": ("2 * n", "2 * n"), "halves": ("n / 2", "n / 2"),
    "absolute values": ("abs(n)", "Math.abs(n)"),
}  # fmt: skip
ENDS = {
    "list": ("returns the {} in a list", "takes a list and returns the {}",
             "finds the {} in a list"),
    "sum": ("returns the sum of the {} in a list", "adds up the {} in a list",
            "sums the {} in a list"),
    "count": ("counts the {} in a list", "returns how many {} a list has"),
    "largest": ("returns the largest of the {} in a list",
                "finds the largest of the {} in a list"),
    "smallest": ("returns the smallest of the {} in a list",
                 "finds the smallest of the {} in a list"),
}  # fmt: skip


@dataclass(frozen=True)
class Template:
    """What a function does in one wording, its code and test."""

    kind: str  # "task" or "composition"
    does: str
    canonical: str
    name: str
    code: str
    test: str
    language: str
    held_out: bool

    def called(self, name: str) -> Template:
        """The same function with another name."""
        word = re.compile(rf"\b{re.escape(self.name)}\b(?=\()")
        code, test = word.sub(name, self.code), word.sub(name, self.test)
        return replace(self, name=name, code=code, test=test)


def tasks() -> Iterator[Template]:
    """The templates of tasks.txt, with JavaScript where the one expression is the same in it."""
    blocks = re.split(r"\n\n(?=def )", TASKS.read_text().strip())
    for block in blocks[0].split("\n\n", 1)[1:] + blocks[1:]:
        lines = block.splitlines()
        wordings = [line for line in lines if line[:2] in ("- ", "* ")]
        (test,) = (line[2:] for line in lines if line.startswith("> "))
        body = [line for line in lines[1:] if line not in wordings and line[:2] != "> "]
        head = lines[0].removeprefix("def ")
        name, canonical = head.partition("(")[0], wordings[0][2:]
        versions = [(PYTHON, name, "\n".join([f"def {head}:", *body]), test)]
        expression = re.fullmatch(r"    return ([\w +*/%<>().-]+)", "\n".join(body))
        if expression and not ONLY_PYTHON.search(expression[1]) and '"' not in test:
            code = (
                f"function {camel(name)}({head.partition('(')[2]} {{\n  return {expression[1]};\n}}"
            )
            check = test.replace(" and not ", " && !").replace(" and ", " && ")
            check = re.sub(rf"\b{name}\b", camel(name), check)
            versions.append((JAVASCRIPT, camel(name), code, check))
        for language, called, code, check in versions:
            for line in wordings:
                out, does = line.startswith("*"), line[2:]
                yield Template("task", does, canonical, called, code, check, language, out)


def camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda found: found[1].upper(), name)


def conditions(rng: random.Random) -> Iterator[tuple[str, str, str, str, str]]:
    """Words before and after `numbers`, part of a name, and the condition in both languages."""
    for word, (python, javascript) in FILTERS.items():
        yield f"{word} numbers", word, python, javascript, word
    for words, python in LIMITS.items():
        for _ in range(3):
            k = rng.randint(2, 20)
            name = words.split(" {")[0].removeprefix("of ").replace(" ", "_") + f"_{k}"
            code = python.format(k=k)
            yield f"numbers {words.format(k=k)}", name, code, code.replace("==", "==="), words


def compositions(rng: random.Random) -> Iterator[Template]:
    """Lists, sums, counts and extremes of what is taken of the numbers that meet a condition."""
    for numbers, short, python, javascript, part in conditions(rng):
        for taken, (value, js_value) in MAPS.items():
            for end, wordings in ENDS.items():
                if end == "count" and taken:
                    continue
                label = hashlib.sha256(f"{end}/{taken}/{part}".encode()).hexdigest()
                of = f"{taken} of the {numbers}" if taken else numbers
                parts = ("" if end == "list" else end, short, taken.replace(" ", "_"))
                name = "_".join(filter(None, parts)) + (
                    "_numbers" if parts == ("", short, "") else ""
                )
                made = composed(end, value, python), js_composed(end, js_value, javascript)
                script = f"function {camel(name)}(numbers) {{\n  return {made[1]};\n}}"
                for language, called, code in (
                    (PYTHON, name, f"def {name}(numbers):\n    return {made[0]}"),
                    (JAVASCRIPT, camel(name), script),
                ):
                    test = f"{called}({NUMBERS})"
                    for wording in wordings:
                        yield Template(
                            "composition", wording.format(of), wordings[0].format(of), called, code,
                            test, language, held_out=int(label, 16) % 8 == 0,
                        )  # fmt: skip


def composed(end: str, value: str, condition: str) -> str:
    """The expression in Python."""
    each = f"{value} for n in numbers if {condition}"
    if end == "list":
        return f"[{each}]"
    if end == "count":
        return f"sum(1 for n in numbers if {condition})"
    return {"sum": "sum({})", "largest": "max({})", "smallest": "min({})"}[end].format(each)


def js_composed(end: str, value: str, condition: str) -> str:
    """The expression in JavaScript."""
    each = f"numbers.filter((n) => {condition})"
    if end == "count":
        return f"{each}.length"
    each += f".map((n) => {value})" if value != "n" else ""
    if end == "sum":
        return f"{each}.reduce((a, b) => a + b, 0)"
    forms = {"list": "{}", "largest": "Math.max(...{})", "smallest": "Math.min(...{})"}
    return forms[end].format(each)


def run_python(code: str, test: str) -> object:
    """The value of a test after code of ours."""
    space: dict[str, object] = {}
    exec(code, space)
    return eval(test, space)


def check(templates: list[Template]) -> None:
    """Every answer runs and passes its test."""
    for t in templates:
        if t.language == PYTHON:
            value = run_python(t.code, t.test)
            assert value is not False and value is not None, t
    node = shutil.which("node")
    if node is None:
        print("node is not on the PATH: answers in JavaScript are not checked")
        return
    program = "function check(value, name) { if (value === false) throw new Error(name); }\n"
    for t in templates:
        if t.language == JAVASCRIPT:
            program += f"(() => {{ {t.code}\ncheck({t.test}, {json.dumps(t.name)}); }})();\n"
    subprocess.run([node, "-"], input=program.encode(), check=True)
