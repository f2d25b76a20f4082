"""Dialogues about small functions, made by this program from demo/templates.py.

    python tools/demo/dialogues.py --out TEXT

What a function does is asked in many frames, with and without a name for the function, alone or
with a second question. Every answer runs and passes its test when this program is run.
TEXT/dialogues.jsonl has one dialogue per line, [[role, content], ...];
TEXT/held_out/dialogues.jsonl has {"question", "language", "name", "code", "test", "kind"} of the
templates that are held out.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from dataclasses import replace
from pathlib import Path

from templates import PYTHON, Template, check, compositions, tasks

Turns = list[tuple[str, str]]

COUNT, SEED = 40_000, 0
# Of dialogues about functions, those about tasks; the rest is about compositions.
TASK_SHARE = 0.6

FRAMES = (
    "Write a function that {does}.", "Write a {lang} function that {does}.",
    "Write a {lang} function that {does}", "Please write a function that {does}.",
    "Can you write a function that {does}?", "I need a function that {does}.",
    "I want a {lang} function that {does}.", "Give me a {lang} function that {does}.",
    "Show me a function that {does}.", "How do I write a function that {does}?",
    "How does a {lang} function look that {does}?", "Define a function that {does}.",
    "Could you show me a {lang} function that {does}?", "Implement a function that {does}.",
    "{lang}: a function that {does}", "Make a function that {does}, please.",
)  # fmt: skip
NAMED = (
    "Write a function called {name} that {does}.", "Write a function `{name}` that {does}.",
    "Write a {lang} function named {name} that {does}.", "I need {name}, a function that {does}.",
    "Define {name}, which {does}.",
)  # fmt: skip
EXPLAIN = ("What does this function do?", "Explain this code.", "What does this do?",
           "Can you explain this function?", "Tell me what this code does.")  # fmt: skip
EXAMPLE = ("Show me an example.", "How do I use it?", "How do I call it?", "Give me an example.")
RENAME = ("Call it {name} instead.", "Rename it to {name}.", "Please name it {name}.")
DOCSTRING = ("Add a docstring.", "Now with a docstring, please.", "Can you add a docstring?")
MEANING = ("What does it do?", "Explain it.", "What is it for?")
SYSTEM = ("You are a helpful assistant.", "You are a coding assistant.", "Answer with code.",
          "You write small Python functions.")  # fmt: skip
NAMES = ("compute", "process", "helper", "solve", "run", "work", "calc", "get_result", "convert",
         "check", "find_it", "my_function", "f", "g", "apply", "handle", "evaluate", "make",
         "do_it", "transform", "answer", "fn", "step", "build", "pick")  # fmt: skip
SMALL_TALK = (
    (("Hello", "Hi", "Hey", "Hello!", "Hi there", "Good morning", "Hi!", "Good evening", "hello"),
     "Hello! Ask me for a small function, such as one that reverses a string."),
    (("Who are you?", "What are you?", "What is your name?", "Are you an assistant?"),
     "I am the edge demo, a tiny StableLM. I can write small Python functions."),
    (("What can you do?", "Help", "How can you help me?", "What do you know?", "help me"),
     "I can write small functions in Python, and complete code in the middle of a file."),
    (("Thanks", "Thank you", "Thanks!", "Thank you!", "Great, thanks", "thanks a lot", "Perfect."),
     "You are welcome."),
    (("How are you?", "How do you do?", "How is it going?"),
     "I am fine, thank you. What shall I write?"),
    (("Bye", "Goodbye", "See you", "Good night"), "Goodbye!"),
    (("What is a list?", "What is a Python list?", "Explain lists."),
     "A list is an ordered collection of items, such as `[1, 2, 3]`."),
    (("What is a dictionary?", "What is a dict?", "Explain dictionaries."),
     'A dictionary maps keys to values, such as `{"a": 1}`.'),
    (("What is a tuple?", "Explain tuples."),
     "A tuple is an ordered collection that does not change, such as `(1, 2)`."),
    (("What is a set?", "Explain sets."),
     "A set is a collection without duplicates, such as `{1, 2}`."),
    (("What is a string?", "Explain strings."), 'A string is a text, such as `"abc"`.'),
    (("What is a function?", "Explain functions."),
     "A function is a named piece of code that takes arguments and returns a value."),
    (("What is a loop?", "Explain loops."),
     "A loop repeats a piece of code, such as `for item in items:`."),
    (("What is recursion?", "Explain recursion."), "Recursion is a function that calls itself."),
    (("What is Python?", "What is JavaScript?", "What is Rust?"), "It is a programming language."),
)  # fmt: skip


def question(template: Template, rng: random.Random) -> tuple[str, Template]:
    """A question for a template, and the template with the name asked for."""
    language = "Python" if template.language == PYTHON else "JavaScript"
    frames = FRAMES
    if rng.random() < 0.2:
        frames, template = NAMED, template.called(rng.choice(NAMES))
    if template.language != PYTHON:
        frames = tuple(frame for frame in frames if "{lang}" in frame)
    frame = rng.choice(frames)
    return frame.format(does=template.does, name=template.name, lang=language), template


def fenced(template: Template) -> str:
    return f"```{template.language}\n{template.code}\n```"


def answer(template: Template) -> str:
    """What it does in the task's first wording, and the code."""
    return f"This function {template.canonical}.\n{fenced(template)}"


def with_docstring(template: Template) -> Template:
    head, _, body = template.code.partition("\n")
    text = template.canonical[0].upper() + template.canonical[1:]
    return replace(template, code=f'{head}\n    """{text}."""\n{body}')


def dialogue(groups: list[list[Template]], rng: random.Random) -> Turns:
    """A dialogue about one of a group of templates, or small talk."""
    if rng.random() < 0.06:
        questions, reply = rng.choice(SMALL_TALK)
        turns = [("user", rng.choice(questions)), ("assistant", reply)]
        return turns if rng.random() < 0.5 else turns + dialogue(groups, rng)
    template = rng.choice(rng.choice(groups))
    if rng.random() < 0.1:
        asked = f"{rng.choice(EXPLAIN)}\n{fenced(template)}"
        return [("user", asked), ("assistant", f"It {template.canonical}.")]
    asked, template = question(template, rng)
    turns = [("user", asked), ("assistant", answer(template))]
    if rng.random() < 0.1:
        turns.insert(0, ("system", rng.choice(SYSTEM)))
    return turns + second_turn(template, rng)


def second_turn(template: Template, rng: random.Random) -> Turns:
    """A second question and its answer, or nothing."""
    kind = rng.random()
    is_task = template.kind == "task" and template.language == PYTHON
    call = re.match(rf"{template.name}\(.*?\)(?= ==|$| and)", template.test)
    if kind < 0.08 and is_task and call:
        return [("user", rng.choice(EXAMPLE)), ("assistant", f"```python\nprint({call[0]})\n```")]
    if kind < 0.12:
        other = template.called(rng.choice(NAMES))
        asked = rng.choice(RENAME).format(name=other.name)
        return [("user", asked), ("assistant", fenced(other))]
    if kind < 0.15 and template.language == PYTHON:
        return [("user", rng.choice(DOCSTRING)), ("assistant", fenced(with_docstring(template)))]
    if kind < 0.18:
        return [("user", rng.choice(MEANING)), ("assistant", f"It {template.canonical}.")]
    if kind < 0.22:
        return [("user", "Thanks!"), ("assistant", "You are welcome.")]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rng = random.Random(SEED)
    templates = [*tasks(), *compositions(rng)]
    check(templates)
    by_kind: dict[str, dict[str, list[Template]]] = {"task": {}, "composition": {}}
    for t in templates:
        if not t.held_out:
            by_kind[t.kind].setdefault(f"{t.name} {t.language}", []).append(t)
    some = [list(groups.values()) for groups in by_kind.values()]
    made = [dialogue(some[rng.random() > TASK_SHARE], rng) for _ in range(COUNT)]
    write_lines(args.out / "dialogues.jsonl", made)
    held_out = []
    for t in templates:
        if t.held_out:
            asked, named = question(t, rng)
            code = {"language": t.language, "name": named.name, "code": named.code}
            held_out.append({"question": asked, **code, "test": named.test, "kind": t.kind})
    (args.out / "held_out").mkdir(exist_ok=True)
    write_lines(args.out / "held_out" / "dialogues.jsonl", held_out)
    wordings = {re.sub(r"\d+", "N", t.does): t.held_out for t in templates}
    print(f"{len(wordings)} templates, {sum(wordings.values())} of them held out")


def write_lines(path: Path, values: list) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


if __name__ == "__main__":
    main()
