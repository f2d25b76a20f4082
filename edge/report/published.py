"""Table 11 with a profile's figures beside it, and what limits the comparison."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge.device.chips import find_chip
from edge.profile.profile import Profile, Row
from edge.profile.published import PublishedRow, is_published_model, table11, table11_rows
from edge.report.table import Cell, Table, number_cell
from edge.text import escape, plain, share

HEAD = (
    *("Framework", "Precision", "Published (tok/s)", "Ours (tok/s)", "Ours / published"),
    *("Published (W)", "Ours (W)", "Published (J/token)", "Ours (J/token)"),
    *("Published, of M2 Pro", "Published, of M2 Max", "Ours, of this device"),
)


@dataclass(frozen=True)
class Beside:
    """The table and the sentences under it."""

    table: Table
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """Table and notes."""
        return "\n".join([self.table.markdown(), "", *(f"- {escape(note)}" for note in self.notes)])


def table11_beside(profile: Profile) -> Beside:
    """Published and measured figures; of several workloads a row's first, rows of peers never."""
    pairs = [(published, published.measured(profile)) for published in table11_rows()]
    lines = tuple(_cells(published, row) for published, row in pairs)
    table = Table(HEAD, lines, HEAD[:2])
    return Beside(table, tuple(plain(note, 600) for note in _notes(profile, pairs)))


def _cells(published: PublishedRow, row: Row | None) -> tuple[Cell, ...]:
    names = ("decode_tok_s", "power_w", "joules_per_token")
    quantities = [None if row is None else getattr(row, name) for name in names]
    rate, power, joules = (None if q is None else q.median for q in quantities)
    ratio = None if rate is None else rate / published.decode_tok_s
    reached = None if row is None else row.bandwidth_fraction
    shares = [*(published.share_of(gb_s) for gb_s in _candidates().values()), reached]
    return (
        Cell(published.framework),
        Cell(published.precision),
        Cell(f"{published.decode_tok_s:g}", published.decode_tok_s),
        number_cell(rate),
        number_cell(ratio),
        Cell(f"{published.power_w:g}", published.power_w),
        number_cell(power),
        number_cell(published.joules_per_token),
        number_cell(joules),
        *(Cell(share(value), value) for value in shares),
    )


def _candidates() -> dict[str, float]:
    """Chips that "M2 Pro Max" may mean, and their bandwidths in GB/s."""
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
