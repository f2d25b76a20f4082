"""Results of an evaluation as a JSON document and as a table; the worst positions in context."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from msgspec import structs

from edge.convert.convert import Artefact
from edge.convert.sources.find import Source
from edge.convert.targets import bits_per_weight, file_bytes
from edge.errors import printable
from edge.quality.corpus import Windows
from edge.quality.evaluate import Evaluated
from edge.quality.score import Scores
from edge.text import NOT_MEASURED, Layout, escape, texts_table
from edge.tokenizer.tokenizer import Tokenizer

HEAD = ("Framework", "Precision", "MB", "Bits/weight", "Perplexity", "Ratio to the reference's",
        "Bits/byte", "KL mean", "KL p99", "KL max", "Top-1")  # fmt: skip
WORDS, COMPARED = 2, (5, 7, 8, 9, 10)
# Columns that a narrow terminal does not show, the least important first.
DROPPED = ("KL max", "KL p99", "Bits/byte", "Bits/weight", "MB", "Ratio to the reference's")
CONTEXT_TOKENS, CONTEXT_CHARACTERS = 48, 60
Row = dict[str, Any]


def build_document(
    source: Source,
    parameters: Sequence[int],
    artefacts: Sequence[Artefact],
    reference: str | None,
    windows: Windows,
    found: Evaluated,
    tokenizer: Tokenizer | None = None,
    worst_count: int = 0,
) -> Row:
    """JSON document with a row per artefact; `reasons` of a row explain its nulls.

    `parameters` are the numbers of weights. With `worst_count`, each row except the reference's
    has its worst positions.
    """
    rows = [_row(*each, reference, found) for each in zip(artefacts, parameters, strict=True)]
    if worst_count and reference is not None and tokenizer is not None:
        for row in rows:
            if not row["is_reference"]:
                scores = found.scores[row["artefact"]], found.scores[reference]
                row["worst"] = worst(windows, *scores, tokenizer, worst_count)
    document: Row = {
        "model": model_record(source),
        "corpus": {
            **asdict(windows.corpus),
            "tokens": int(windows.scored.sum()),
            "scored_bytes": int(windows.bytes.sum()),
            "windows": len(windows),
            "windows_left_out": windows.left_out,
        },
        "window": windows.tokens,
        "reference": reference,
        "rows": rows,
    }
    lost = [f"{a.recipe.name}: {note}" for a in artefacts for note in a.notes]
    return {**document, "notes": [*_notes(document), *found.notes, *lost]}


def model_record(source: Source) -> Row:
    return {"name": source.name, "source": source.origin, "revision": source.revision}


def _row(artefact: Artefact, parameters: int, reference: str | None, found: Evaluated) -> Row:
    name = artefact.recipe.name
    return {
        "artefact": name,
        "framework": artefact.recipe.framework,
        "precision": artefact.recipe.precision,
        "file_bytes": file_bytes(artefact.path),
        "bits_per_weight": bits_per_weight(artefact.path, parameters),
        "is_reference": name == reference,
        **structs.asdict(found.quality[name]),
    }


def _notes(document: Row) -> list[str]:
    """Notes on the corpus and the method, and the reasons of rows by artefact."""
    corpus, reference = document["corpus"], document["reference"]
    left = corpus["windows_left_out"]
    spread = f", evenly spaced; {left} windows were left out (--tokens)" if left else ""
    found = [
        f"{corpus['tokens']} tokens ({corpus['scored_bytes']} bytes) of {corpus['name']} in "
        f"{corpus['windows']} windows of {document['window']}{spread}; the first token of each "
        f"window and the EOS between texts are not scored",
        "± is the standard error over windows, brackets are 95 % intervals",
    ]
    if reference is not None:
        found.append(
            f"compared with {reference}: the ratio's interval is that of the differences per "
            f"window, KL is in nats per token"
        )
    names: dict[str, list[str]] = {}
    for row in document["rows"]:
        for reason in row["reasons"]:
            names.setdefault(reason, []).append(row["artefact"])
    return [*found, *(f"{', '.join(about)}: {reason}" for reason, about in names.items())]


def text(document: Row, layout: Layout | None) -> str:
    """The table, its notes, and the worst positions if the document has them.

    Markdown without a layout.
    """
    lines = [_cells(row) for row in document["rows"]]
    table = texts_table(HEAD, lines, HEAD[:WORDS], dropped=DROPPED, cut=HEAD[:WORDS])
    places = [_worst_text(row) for row in document["rows"] if "worst" in row]
    if layout is not None:
        drawn, notes = layout.table(table), layout.notes(document["notes"])
        return "\n".join([f"{drawn}\n\n{notes}\n", *places])
    notes = "\n".join(f"- {escape(note)}" for note in document["notes"])
    return "\n".join([f"{table.markdown()}\n\n{notes}\n", *map(escape, places)])


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
    """The `count` scored positions with the largest KL divergence, largest first.

    Windows are counted from 0; `position` and `next` are those of the true next token. Texts are
    one line each, with control characters escaped.
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
    """The most probable token, its probability and that of the true next token."""
    nll, _, top, top_log_p = score.item()
    return {
        "token": _token(tokenizer, top),
        "probability": math.exp(top_log_p),
        "probability_of_next": math.exp(-nll),
    }


def _token(tokenizer: Tokenizer, token_id: int) -> str:
    """Text of a token, or its id if it has none."""
    return printable(tokenizer.decode([token_id])) or f"token {token_id}"


def _worst_text(row: Row) -> str:
    name = row["artefact"]
    lines = [f"{name}: positions with the largest KL divergence", ""]
    for place in row["worst"]:
        guesses = [
            f"⟦{guess['token']}⟧ {guess['probability']:.0%}, next token "
            f"{guess['probability_of_next']:.1%}"
            for guess in (place["reference"], place["artefact"])
        ]
        lines += [
            f"- KL {place['kl']:.3g} nats, window {place['window']}, token {place['position']}: "
            f"{place['before']}⟦{place['next']}⟧",
            f"  - reference: {guesses[0]}; {name}: {guesses[1]}",
        ]
    return "\n".join(lines) + "\n"
