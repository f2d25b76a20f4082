"""Results of an evaluation as a JSON document, as a table, and the worst positions in context."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from edge.convert.artefacts.sizes import bits_per_weight, file_bytes
from edge.convert.checkpoint import Checkpoint
from edge.convert.convert import Artefact
from edge.errors import printable
from edge.quality.corpus import Windows
from edge.quality.evaluate import Evaluated
from edge.quality.score import Scores
from edge.text import NOT_MEASURED, escape
from edge.text import markdown as markdown_table
from edge.tokenizer.tokenizer import Tokenizer

HEAD = ("Framework", "Precision", "MB", "Bits/weight", "Perplexity", "Ratio to the reference's",
        "Bits/byte", "KL mean", "KL p99", "KL max", "Top-1")  # fmt: skip
WORDS, COMPARED = 2, (5, 7, 8, 9, 10)
CONTEXT_TOKENS, CONTEXT_CHARACTERS = 48, 60
Row = dict[str, Any]


def build_document(
    checkpoint: Checkpoint,
    artefacts: Sequence[Artefact],
    reference: str | None,
    windows: Windows,
    found: Evaluated,
) -> Row:
    """A JSON object with a row per artefact; every null of a row has a sentence in `reasons`."""
    document: Row = {
        "model": model_record(checkpoint),
        "corpus": {
            **asdict(windows.corpus),
            "tokens": int(windows.scored.sum()),
            "scored_bytes": int(windows.bytes.sum()),
            "windows": len(windows),
            "windows_left_out": windows.left_out,
        },
        "window": windows.tokens,
        "reference": reference,
        "rows": [_row(artefact, checkpoint, reference, found) for artefact in artefacts],
    }
    lost = [f"{a.recipe.name}: {note}" for a in artefacts for note in a.notes]
    return {**document, "notes": [*_notes(document), *found.notes, *lost]}


def add_worst(
    document: Row, windows: Windows, found: Evaluated, tokenizer: Tokenizer, count: int
) -> None:
    """Give each row but the reference's its worst positions."""
    for row in document["rows"]:
        if not row["is_reference"]:
            scores = found.scores[row["artefact"]], found.scores[document["reference"]]
            row["worst"] = worst(windows, *scores, tokenizer, count)


def model_record(checkpoint: Checkpoint) -> Row:
    """The checkpoint as a document names it."""
    source = checkpoint.source
    return {"name": source.name, "source": source.origin, "revision": source.revision}


def _row(
    artefact: Artefact, checkpoint: Checkpoint, reference: str | None, found: Evaluated
) -> Row:
    name = artefact.recipe.name
    quality = asdict(found.quality[name])
    return {
        "artefact": name,
        "framework": artefact.recipe.framework,
        "precision": artefact.recipe.precision,
        "file_bytes": file_bytes(artefact.path),
        "bits_per_weight": bits_per_weight(artefact.path, checkpoint.parameters),
        "is_reference": name == reference,
        **quality,
        "reasons": list(quality["reasons"]),
    }


def _notes(document: Row) -> list[str]:
    """How to read the rows, in sentences."""
    corpus, reference = document["corpus"], document["reference"]
    left = corpus["windows_left_out"]
    spread = f", evenly apart; {left} windows were left out (--tokens)" if left else ""
    found = [
        f"{corpus['tokens']} tokens ({corpus['scored_bytes']} bytes) of {corpus['name']} in "
        f"{corpus['windows']} windows of {document['window']}{spread}; the first token of each "
        f"window and the EOS between texts are not scored",
        "± is the standard error with the window as the unit, brackets hold 95 % intervals",
    ]
    if reference is not None:
        found.append(
            f"compared with {reference}: the ratio's interval is of the differences window by "
            f"window, KL is in nats per token"
        )
    names: dict[str, list[str]] = {}
    for row in document["rows"]:
        for reason in row["reasons"]:
            names.setdefault(reason, []).append(row["artefact"])
    return [*found, *(f"{', '.join(about)}: {reason}" for reason, about in names.items())]


def markdown(document: Row) -> str:
    """The table, its notes, and the worst positions where the rows have them."""
    lines = [[escape(cell) for cell in _cells(row)] for row in document["rows"]]
    table = markdown_table(HEAD, lines, HEAD[:WORDS])
    notes = "\n".join(f"- {escape(note)}" for note in document["notes"])
    places = [_worst_text(row) for row in document["rows"] if "worst" in row]
    return "\n".join([f"{table}\n\n{notes}\n", *places])


def _cells(row: Row) -> list[str]:
    cells = [
        row["framework"],
        row["precision"],
        f"{row['file_bytes'] / 1e6:.1f}",
        f"{row['bits_per_weight']:.2f}",
        _number(row["perplexity"], ".3f"),
        _number(row["perplexity_ratio"], ".4f"),
        _number(row["bits_per_byte"], ".4f"),
        *(_number(row[key], ".3g") for key in ("kl_mean", "kl_p99", "kl_max")),
        _number(row["top1_agreement"], ".1%"),
    ]
    if row["perplexity_se"] is not None:
        cells[4] += f" ± {row['perplexity_se']:.3f}"
    if row["perplexity_ratio_ci95"] is not None:
        low, high = row["perplexity_ratio_ci95"]
        cells[5] += f" ({low:.4f} to {high:.4f})"
    if row["is_reference"]:
        cells[1] += " (reference)"
        for i in COMPARED:
            cells[i] = NOT_MEASURED
    return cells


def _number(value: float | None, pattern: str) -> str:
    return NOT_MEASURED if value is None else format(value, pattern)


def worst(
    windows: Windows, own: Scores, reference: Scores, tokenizer: Tokenizer, count: int
) -> list[Row]:
    """Scored positions of the largest divergence, at most so many, the largest first.

    Windows are counted from 0; `position` and `next` are of the token that came. Texts are one
    line each, control characters shown as escapes.
    """
    kl = np.where(windows.scored, -own["kl"], np.inf)
    order = np.argsort(kl, axis=None, kind="stable")[:count]
    found = []
    for window, i in (divmod(int(i), kl.shape[1]) for i in order if windows.scored.flat[i]):
        ids = [int(token) for token in windows.ids[window]]
        before = tokenizer.decode(ids[max(0, i + 1 - CONTEXT_TOKENS) : i + 1])
        place = {
            "kl": float(own["kl"][window, i]),
            "window": window,
            "position": i + 1,
            "before": printable(before)[-CONTEXT_CHARACTERS:],
            "next": _token(tokenizer, ids[i + 1]),
            "reference": _guess(tokenizer, reference[window, i]),
            "artefact": _guess(tokenizer, own[window, i]),
        }
        found.append(place)
    return found


def _guess(tokenizer: Tokenizer, score: Any) -> Row:
    """The most probable token, and the probability that the true one was given."""
    nll, _, top, top_log_p = score.item()
    return {
        "token": _token(tokenizer, top),
        "probability": math.exp(top_log_p),
        "probability_of_next": math.exp(-nll),
    }


def _token(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as text; by its number where the tokenizer has no text for it."""
    return printable(tokenizer.decode([token_id])) or f"token {token_id}"


def _worst_text(row: Row) -> str:
    """A heading and two lines per position."""
    name = row["artefact"]
    lines = [f"{name}: where it is furthest from the reference", ""]
    for place in row["worst"]:
        had = [
            f"had ⟦{guess['token']}⟧ ({guess['probability']:.0%}, and "
            f"{guess['probability_of_next']:.1%} for what came)"
            for guess in (place["reference"], place["artefact"])
        ]
        lines += [
            f"- KL {place['kl']:.3g} nats, window {place['window']}, token {place['position']}: "
            f"{place['before']}⟦{place['next']}⟧",
            f"  - reference {had[0]}; {name} {had[1]}",
        ]
    return escape("\n".join(lines)) + "\n"
