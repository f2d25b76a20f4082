"""What a demo can do: held-out bits per byte by language, holes filled, dialogues answered.

    python tools/evaluate_demo.py CHECKPOINT --text TEXT [-o FILE.json]

TEXT is what tools/demo/corpus.py and tools/demo/dialogues.py wrote; only its held_out/ is read.
Everything runs as a user runs it: from the mlx-fp16 artefact, greedily, holes cut and filled as by
`edge eval --fim --samples 300` in both orders, from all languages alike and from the sample that
edge includes. A dialogue counts when the code in the answer gives what the expected code gives.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import edge
from edge.generate.conversation import Conversation
from edge.model.load import open_model
from edge.quality.corpus import iter_texts
from edge.quality.fim.fill import fill_all, settings_for
from edge.quality.fim.holes import SINGLE_LINE, draw_holes
from edge.quality.fim.score import score, wilson
from edge.quality.records import Subject
from edge.tokenizer.fim_tokens import ORDERS, Order

HOLES, LANGUAGE_BYTES = 300, 60_000
ANSWER_TOKENS, LIMIT_S = 160, 10
SUFFIX = {"python": "py", "javascript": "js", "typescript": "ts", "rust": "rs", "shell": "sh"}
FENCE = re.compile(r"```(\w*)\n(.*?)(?:```|\Z)", re.DOTALL)
PARTS = ("losses", "dialogues", "holes, psm", "holes, spm", "sample, psm", "sample, spm")
# Numbers that a composition is tried on.
NUMBERS = "[1, -2, 3, 4, 30, 0, 42, -7, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]"


def held_out_folder(text: Path, folder: Path) -> None:
    """About LANGUAGE_BYTES of whole held-out files of each language, in the order of a hash."""
    for path in sorted((text / "held_out").glob("*.jsonl")):
        if path.stem == "dialogues":
            continue
        files = [json.loads(line) for line in path.read_text().splitlines()]
        files.sort(key=lambda file: hashlib.sha256(file["name"].encode()).digest())
        (folder / path.stem).mkdir(parents=True)
        size = 0
        for number, file in enumerate(files):
            if size + len(file["text"]) <= LANGUAGE_BYTES:
                size += len(file["text"])
                name = f"{number:04d}.{SUFFIX.get(path.stem, path.stem)}"
                (folder / path.stem / name).write_text(file["text"])


def losses(checkpoint: Path, out: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Plain left-to-right loss of all languages and of each, in windows of the context."""
    found = {}
    for corpus in (folder, *sorted(folder.iterdir())):
        options = f"--rows mlx-fp16 --reference none --window 1024 --tokens 0 --out {out} -o json"
        document = run_edge("eval", checkpoint, "--corpus", corpus, *options.split())
        (row,) = json.loads(document)["rows"]
        name = "all" if corpus == folder else corpus.name
        found[name] = {
            "nats_per_token": math.log(row["perplexity"]),
            "bits_per_byte": row["bits_per_byte"],
            "tokens": row["tokens"],
        }
    return found


def run_edge(*arguments: str | Path) -> bytes:
    """What a command of edge prints."""
    command = [sys.executable, "-m", "edge", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def holes_filled(artefact: Path, out: Path, folder: Path | None, order: Order) -> dict[str, Any]:
    """Exact single-line middles, and by the file's suffix."""
    _, tokenizer = edge.load(artefact)
    holes = draw_holes(list(iter_texts(folder)), SINGLE_LINE, HOLES, 0)
    filled = fill_all(
        Subject("mlx-fp16", artefact), holes, settings_for(1024, order, 128), tokenizer,
        out / "middles", 1, lambda _: None, lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    scores = [score(hole.middle, made.text) for hole, made in zip(holes, filled, strict=True)]
    by_suffix: dict[str, list[int]] = {}
    for hole, one in zip(holes, scores, strict=True):
        counts = by_suffix.setdefault(hole.name.split(":")[0].rpartition(".")[2], [0, 0])
        counts[0] += one.exact
        counts[1] += 1
    exact = sum(s.exact for s in scores)
    return {
        "exact": exact,
        "of": HOLES,
        "ci95": wilson(exact, HOLES),
        "edit_similarity": sum(s.similarity for s in scores) / HOLES,
        "by_suffix": by_suffix,
    }


def value(code: str, test: str, language: str) -> str | None:
    """What the test gives after the code, as text; None if it fails. In a process of its own."""
    if language == "javascript":
        command = [shutil.which("node") or "node", "-"]
        program = f"{code}\nconsole.log(JSON.stringify({test}));"
    else:
        command = [sys.executable, "-I", "-"]
        program = f"{code}\nprint(repr({test}))"
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(command, input=program.encode(), capture_output=True,
                                  timeout=LIMIT_S, cwd=folder)  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def is_right(item: dict[str, str], reply: str) -> bool:
    """True if the first fenced code is the expected, or gives the same under any name."""
    found = FENCE.search(reply)
    if found is None:
        return False
    code = found[2].strip()
    if code == item["code"].strip():
        return True
    named = re.search(r"(?:def|function) (\w+)", code)
    if named is None or "callable" in item["test"]:
        return False
    test = item["test"]
    if item["kind"] == "composition":
        test = re.sub(r"\[.*\]", NUMBERS, test)
    expected = value(item["code"], test, item["language"])
    got = value(code, re.sub(rf"\b{item['name']}\b(?=\()", named[1], test), item["language"])
    return got is not None and got == expected


def dialogues_answered(artefact: Path, text: Path, most: int) -> dict[str, Any]:
    """Held-out questions, evenly over both kinds, each in a conversation of its own."""
    lines = (text / "held_out" / "dialogues.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    items.sort(key=lambda item: hashlib.sha256(item["question"].encode()).digest())
    model, tokenizer, _ = open_model(artefact)
    counts: dict[str, list[int]] = {}
    shown = []
    for kind in ("task", "composition"):
        for item in [i for i in items if i["kind"] == kind][:most]:
            chat = Conversation(model, tokenizer)
            reply = "".join(
                event.text for event in chat.ask(item["question"], max_tokens=ANSWER_TOKENS)
            )
            right = is_right(item, reply)
            count = counts.setdefault(f"{kind}, {item['language']}", [0, 0])
            count[0] += right
            count[1] += 1
            shown.append({"question": item["question"], "reply": reply, "right": right})
    right, asked = (sum(count[i] for count in counts.values()) for i in (0, 1))
    return {
        "right": right,
        "of": asked,
        "ci95": wilson(right, asked),
        "by_kind": counts,
        "replies": shown,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--dialogues", type=int, default=120, help="questions of each kind")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("-o", "--output", type=Path, help="JSON file for everything, with answers")
    meaning = "add the figures to the checkpoint's training.json"
    parser.add_argument("--record", action="store_true", help=meaning)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        out, folder = Path(temporary) / "made", Path(temporary) / "held_out"
        held_out_folder(args.text, folder)
        run_edge("convert", args.checkpoint, "--to", "mlx-fp16", "--out", out)
        artefact = out / "mlx-fp16"
        measures = {
            "losses": partial(losses, args.checkpoint, out, folder),
            "dialogues": partial(dialogues_answered, artefact, args.text, args.dialogues),
        }
        for order in ORDERS:
            measures[f"holes, {order}"] = partial(holes_filled, artefact, out, folder, order)
            measures[f"sample, {order}"] = partial(holes_filled, artefact, out, None, order)
        for part in args.only:
            found[part] = measures[part]()
            if args.output:
                args.output.write_text(json.dumps(found, indent=1) + "\n")
    found.get("dialogues", {}).pop("replies", None)
    if args.record:
        path = args.checkpoint / "training.json"
        document = json.loads(path.read_text())
        document |= {"held_out": found["losses"]["all"]} if "losses" in found else {}
        document["evaluation"] = document.get("evaluation", {}) | found
        path.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
