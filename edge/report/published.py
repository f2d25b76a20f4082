"""Published figures: Table 11 of the Stable Code Technical Report, and beside a profile."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from edge.device.chips import find_chip
from edge.profile.profile import OWN_ENGINES, ModelInfo, Profile, Row
from edge.report.table import number_cell
from edge.text import Cell, Layout, Table, escape, plain, share

HEAD = (
    *("Framework", "Precision", "Published (tok/s)", "Ours (tok/s)", "Ours / published"),
    *("Published (W)", "Ours (W)", "Published (J/token)", "Ours (J/token)"),
    *("Published, of M2 Pro", "Published, of M2 Max", "Ours, of this device"),
)


@dataclass(frozen=True)
class PublishedRow:
    """One line of Table 11; `bytes_per_token` are the weights a token reads, computed by us."""

    artefact: str
    framework: str
    precision: str
    decode_tok_s: float
    power_w: float
    bytes_per_token: int

    @property
    def joules_per_token(self) -> float:
        """W / (tok/s): not in the report."""
        return self.power_w / self.decode_tok_s

    def share_of(self, bandwidth_gb_s: float) -> float:
        """The published rate as a share of the ceiling at a memory bandwidth."""
        return self.decode_tok_s * self.bytes_per_token / (bandwidth_gb_s * 1e9)

    def is_of(self, row: Row) -> bool:
        """The row has the same artefact, on the framework's own engine, measured by edge."""
        own = self.artefact, OWN_ENGINES[self.framework], None
        return (row.artefact, row.engine, row.source) == own

    def measured(self, profile: Profile) -> Row | None:
        """The first valid row of a profile that has a rate for it."""
        rows = (r for r in profile.rows if r.counts and r.decode_tok_s and r.workload.batch == 1)
        return next((row for row in rows if self.is_of(row)), None)


def table11() -> dict[str, Any]:
    """The whole file: rows, source, caveat, what the report does not state."""
    return _read("table11.json")


def other_figures() -> dict[str, Any]:
    return _read("apple_silicon.json")


def table11_rows() -> list[PublishedRow]:
    return [PublishedRow(**row) for row in table11()["rows"]]


def is_published_model(model: ModelInfo) -> bool:
    """The model is that of Table 11, or random weights of its shape.

    The name decides too: stablelm-3b-4e1t has as many parameters.
    """
    theirs = table11()["model"]
    return theirs["name"] in model.name and model.parameters == theirs["parameters"]


@cache
def _read(name: str) -> dict[str, Any]:
    text = (resources.files("edge") / "data" / name).read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


@dataclass(frozen=True)
class PublishedComparison:
    """A table of published and measured figures, and the notes under it."""

    table: Table
    notes: tuple[str, ...]

    def terminal(self, layout: Layout) -> str:
        return f"{layout.table(self.table)}\n\n{layout.notes(self.notes)}"

    def markdown(self) -> str:
        return "\n".join([self.table.markdown(), "", *(f"- {escape(note)}" for note in self.notes)])


def table11_beside(profile: Profile) -> PublishedComparison:
    """Table 11 beside a profile's first row for each line; rows of peers are ignored."""
    pairs = [(published, published.measured(profile)) for published in table11_rows()]
    lines = tuple(_cells(published, row) for published, row in pairs)
    notes = tuple(plain(note, 600) for note in _notes(profile, pairs))
    return PublishedComparison(Table(HEAD, lines, HEAD[:2], dropped=HEAD[:4:-1]), notes)


def _cells(published: PublishedRow, row: Row | None) -> tuple[Cell, ...]:
    names = ("decode_tok_s", "power_w", "joules_per_token")
    quantities = [None if row is None else getattr(row, name) for name in names]
    rate, power, joules = (None if q is None else q.median for q in quantities)
    reached = None if row is None else row.bandwidth_fraction
    shares = [*(published.share_of(gb_s) for gb_s in _candidates().values()), reached]
    return (
        Cell(published.framework),
        Cell(published.precision),
        Cell(f"{published.decode_tok_s:g}", published.decode_tok_s),
        number_cell(rate),
        number_cell(None if rate is None else rate / published.decode_tok_s),
        Cell(f"{published.power_w:g}", published.power_w),
        number_cell(power),
        number_cell(published.joules_per_token),
        number_cell(joules),
        *(Cell(share(value), value) for value in shares),
    )


def _candidates() -> dict[str, float]:
    """Bandwidth in GB/s of the chips that "M2 Pro Max" can mean."""
    found = ((name, find_chip(name)[0]) for name in table11()["device"]["candidates"])
    return {name: chip.bandwidth_gb_s for name, chip in found if chip is not None}


def _notes(profile: Profile, pairs: Sequence[tuple[PublishedRow, Row | None]]) -> Iterator[str]:
    data, model = table11(), profile.model
    source, device = data["source"], data["device"]
    yield (
        f"Published: {source['report']}, arXiv {source['arxiv']} ({source['year']}), Table "
        f"{source['table']}, on '{device['as_printed']}', {source['url']}. {data['caveat']}"
    )
    yield f"Not stated there: {', '.join(data['not_stated'])}."
    bandwidths = ", ".join(f"{chip} {gb_s:g} GB/s" for chip, gb_s in _candidates().items())
    yield f"{device['remark']} Shares are of {bandwidths}."
    yield "J/token of the published rows is computed: W / (tok/s)."
    rows = [row for _, row in pairs if row is not None]
    test = f", {rows[0].workload}, medians" if rows else ""
    yield f"Ours: {model.name} on {profile.device.name}{test}."
    meters = dict.fromkeys(f"{r.power.source} ({r.power.boundary})" for r in rows if r.power)
    if meters:
        yield f"Our watts are of {' and '.join(meters)}."
    if not is_published_model(model):
        theirs = data["model"]
        yield (
            f"{model.name} has {model.parameters / 1e6:.0f} M weights and the published model, "
            f"{theirs['name']}, {theirs['parameters'] / 1e6:.0f} M: the ratios say nothing about "
            f"the devices."
        )
    if model.synthetic:
        yield "Our weights are random: speed and power do not depend on their values."
    if absent := [published.precision for published, row in pairs if row is None]:
        yield f"Without a figure of ours: {', '.join(absent)} (not measured, or INVALID)."
