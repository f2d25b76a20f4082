"""What an evaluation found, as JSON rows and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edge.quality.summary import Quality
from edge.quality.windows import Windows
from edge.report.lines import markdown_of
from edge.report.markdown import escape_markdown
from edge.report.table import NOT_MEASURED

HEAD = (
    "Framework",
    "Precision",
    "MB",
    "Bits/weight",
    "Perplexity",
    "Ratio to the reference's",
    "Bits/byte",
    "KL mean",
    "KL p99",
    "KL max",
    "Top-1",
)
WORDS = 2


@dataclass(frozen=True)
class Facts:
    """What an artefact is, beside its quality."""

    artefact: str
    framework: str
    precision: str
    file_bytes: int
    bits_per_weight: float


def build_row(facts: Facts, quality: Quality, is_reference: bool) -> dict[str, Any]:
    """One JSON object; every null has its sentence in `reasons`."""
    measured = asdict(quality)
    reasons = list(measured.pop("reasons"))
    return {**asdict(facts), "is_reference": is_reference, **measured, "reasons": reasons}


def corpus_record(windows: Windows) -> dict[str, Any]:
    """What was scored: the texts, and how much of them."""
    return {
        **asdict(windows.corpus),
        "tokens": windows.scored_tokens,
        "scored_bytes": windows.scored_bytes,
        "windows": len(windows),
        "windows_left_out": windows.left_out,
    }


def markdown(document: Mapping[str, Any]) -> str:
    """The table and its notes."""
    lines = [[escape_markdown(cell) for cell in _cells(row)] for row in document["rows"]]
    numeric = [False] * WORDS + [True] * (len(HEAD) - WORDS)
    table = markdown_of(HEAD, numeric, lines)
    notes = "\n".join(f"- {escape_markdown(note)}" for note in document["notes"])
    return f"{table}\n\n{notes}\n"


def notes(document: Mapping[str, Any]) -> list[str]:
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
    for row in document["rows"]:
        found += [f"{row['artefact']}: {reason}" for reason in row["reasons"]]
    return _joined(found)


def _joined(sentences: Sequence[str]) -> list[str]:
    """A reason that all rows have is said once."""
    by_reason: dict[str, list[str]] = {}
    plain = []
    for sentence in sentences:
        name, colon, reason = sentence.partition(": ")
        if colon and " " not in name:
            by_reason.setdefault(reason, []).append(name)
        else:
            plain.append(sentence)
    return [*plain, *(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())]


def _cells(row: Mapping[str, Any]) -> list[str]:
    mark = " (reference)" if row["is_reference"] else ""
    own = row["is_reference"]
    return [
        row["framework"],
        row["precision"] + mark,
        f"{row['file_bytes'] / 1e6:.1f}",
        f"{row['bits_per_weight']:.2f}",
        _perplexity(row),
        NOT_MEASURED
        if own
        else _with_interval(row["perplexity_ratio"], row["perplexity_ratio_ci95"], 4),
        _number(row["bits_per_byte"], ".4f"),
        *(
            NOT_MEASURED if own else _number(row[key], ".3g")
            for key in ("kl_mean", "kl_p99", "kl_max")
        ),
        NOT_MEASURED if own else _number(row["top1_agreement"], ".1%"),
    ]


def _perplexity(row: Mapping[str, Any]) -> str:
    if row["perplexity"] is None or row["perplexity_se"] is None:
        return _number(row["perplexity"], ".3f")
    return f"{row['perplexity']:.3f} ± {row['perplexity_se']:.3f}"


def _with_interval(value: float | None, between: Sequence[float] | None, digits: int) -> str:
    if value is None or between is None:
        return _number(value, f".{digits}f")
    return f"{value:.{digits}f} ({between[0]:.{digits}f} to {between[1]:.{digits}f})"


def _number(value: float | None, pattern: str) -> str:
    return NOT_MEASURED if value is None else format(value, pattern)
