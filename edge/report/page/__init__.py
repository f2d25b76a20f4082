"""The files of a report; first of all one self-contained HTML page that fetches nothing.

The template escapes every text of a profile. Two things are inserted unescaped: the plots, whose
text the SVG writer escapes, and the profiles as JSON, in which every `<` is replaced. In addition
a content security policy lets the browser run only the page's script, known by its hash.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import msgspec
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import edge
from edge.device.describe import Bandwidth
from edge.profile.gate import Gate
from edge.profile.profile import Profile, Reason, Row
from edge.report.plots import Drawn, draw
from edge.report.published import is_published_model, table11_beside
from edge.report.table import (
    csv_table,
    error_text,
    has_tests,
    markdown_section,
    profile_table,
    provenance,
    row_label,
    title,
)
from edge.text import figure, plain

# In JSON these occur only in strings, where an escape is equivalent.
UNSAFE_IN_SCRIPT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
VERDICTS = ("INVALID", "WARN", "VALID")
BEST = (
    ("Fastest decode", "decode_tok_s", "tok/s", max),
    ("fastest prefill", "prefill_tok_s", "tok/s", max),
    ("least energy", "joules_per_token", "J/token", min),
)
Facts = list[tuple[str, str]]
Reasons = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A profile for the page, its plots, and the file's bytes."""

    profile: Profile
    drawn: Drawn
    data: bytes


def report_files(read: Sequence[tuple[Profile, bytes]]) -> Iterator[tuple[str, bytes]]:
    sources = [Source(profile, draw(profile), data) for profile, data in read]
    profiles = [profile for profile, _ in read]
    yield "report.html", render_page(sources).encode()
    yield "table.md", "\n".join(map(markdown_section, profiles)).encode()
    yield "table.csv", csv_table(profiles).encode()
    for number, source in enumerate(sources, 1):
        prefix = f"{number}-" if len(sources) > 1 else ""
        for plot in source.drawn.figures:
            yield f"plots/{prefix}{plot.name}.svg", plot.svg().encode()
            yield f"plots/{prefix}{plot.name}.png", plot.png()


def render_page(sources: Sequence[Source]) -> str:
    sections = [_section(number, source) for number, source in enumerate(sources, 1)]
    style, script = _part("style.css"), _part("script.js")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        _part("template.html")
    )
    return template.render(
        title=sections[0]["title"] if len(sections) == 1 else "Device reports",
        sections=sections,
        edge_version=edge.__version__,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=Markup(f"[{','.join(script_json(source.data) for source in sources)}]"),
    )


def script_json(data: bytes) -> str:
    """JSON that cannot end its script element or begin a comment in it."""
    text = msgspec.json.format(data, indent=-1).decode(errors="replace")
    return text.translate(UNSAFE_IN_SCRIPT)


def _section(number: int, source: Source) -> dict[str, Any]:
    profile, rows = source.profile, source.profile.rows
    beside = table11_beside(profile) if is_published_model(profile.model) else None
    reasons, missing = _reasons(rows)
    given = [row.verdict for row in rows]
    return {
        "number": number,
        "title": title(profile),
        "created_utc": profile.created_utc,
        "device": _device(profile),
        "best": _best(rows),
        "verdicts": [(v, given.count(v)) for v in reversed(VERDICTS) if v in given],
        "table": profile_table(profile),
        "beside": beside,
        "reasons": reasons,
        "missing": [*missing, *({"texts": [text], "rows": ()} for text in source.drawn.missing)],
        "plots": [(plot, Markup(plot.svg(f"p{number}-"))) for plot in source.drawn.figures],
        "method": _facts(msgspec.to_builtins(profile.method), 600),
        "checks": _checks(rows),
        "software": _facts(profile.software, 80),
        "provenance": provenance(profile),
        "markdown": markdown_section(profile),
    }


def _device(profile: Profile) -> Facts:
    device, model = profile.device, profile.model
    size = [f"{model.parameters / 1e6:.4g} M weights"] if model.parameters else []
    random = ["random weights"] if model.synthetic else []
    levels = ", ".join(f"{count} {kind}" for kind, count in list(device.cores_by_level.items())[:6])
    cores = f"{device.physical_cores}" + (f" ({levels})" if levels else "")
    gpu_cores = f"{device.gpu_cores} cores" if device.gpu_cores else None
    facts = (
        ("Chip", device.name),
        ("CPU cores", cores if device.physical_cores else None),
        ("GPU", ", ".join(filter(None, (device.gpu_name, gpu_cores)))),
        ("Memory", device.memory_bytes and f"{device.memory_bytes / 2**30:.4g} GiB"),
        ("Memory bandwidth", _bandwidth(device.memory_bandwidth)),
        ("GPU memory bandwidth", _bandwidth(device.gpu_memory_bandwidth)),
        ("System", device.os),
        ("Model", ", ".join((model.name, *size, *random))),
        *(("Remark", remark) for remark in device.remarks[:10]),
    )
    return [(name, plain(str(value), 400)) for name, value in facts if value]


def _bandwidth(bandwidth: Bandwidth | None) -> str | None:
    return None if bandwidth is None else f"{bandwidth.gb_s:.4g} GB/s ({bandwidth.source})"


def _best(rows: Sequence[Row]) -> list[str]:
    found, with_test = [], has_tests(rows)
    for what, key, unit, choose in BEST:
        medians = {
            i: q.median for i, row in enumerate(rows) if row.counts and (q := getattr(row, key))
        }
        if medians:
            place = choose(medians, key=lambda i: medians[i])
            row, best = rows[place], figure(medians[place])
            verdict = "" if row.verdict == "VALID" else f", {row.verdict}"
            found.append(f"{what} {best} {unit} ({row_label(row, with_test)}{verdict})")
    return found


def _checks(rows: Sequence[Row]) -> Facts:
    """What was checked of each row's logits."""
    with_test = has_tests(rows)
    return [(row_label(row, with_test), _check(row.gate)) for row in rows if row.gate]


def _check(gate: Gate) -> str:
    text = (
        f"prompt {gate.prompt_tokens}, depth {gate.depth}, {gate.positions} positions, at once "
        f"and in small pieces: {error_text(gate.worst_error, gate.bound)}"
    )
    if gate.reference_bound is None:
        return text
    other = error_text(gate.reference_error, gate.reference_bound)
    return f"{text}; short prompt against the weights in float32: {other}"


def _reasons(rows: Sequence[Row]) -> tuple[list[Reasons], list[Reasons]]:
    """Reasons for verdicts, of INVALID rows first; and for figures that are not measured."""
    verdicts: dict[str, dict[str, str]] = {}
    missing: dict[str, dict[str, str]] = {}
    with_test = has_tests(rows)
    for row in rows:
        for reason in row.reasons:
            about = Reason.parse(reason).about
            found = missing if about and getattr(row, about) is None else verdicts
            found.setdefault(plain(reason, 600), {})[row_label(row, with_test)] = row.verdict
    return _grouped(verdicts, len(rows)), _grouped(missing, len(rows))


def _grouped(about: dict[str, dict[str, str]], count: int) -> list[Reasons]:
    """Reasons grouped by the rows they are about, without rows where that is all of them."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for text, labels in about.items():
        rows = tuple(labels.items()) if len(labels) < count or count == 1 else ()
        groups.setdefault(rows, []).append(text)
    order = {rows: min([VERDICTS.index(v) for _, v in rows], default=9) for rows in groups}
    return [{"texts": groups[rows], "rows": rows} for rows in sorted(groups, key=order.__getitem__)]


def _facts(data: Mapping[str, Any], most: int) -> Facts:
    texts = [(plain(key, 40).replace("_", " "), _text(value)) for key, value in data.items()]
    return [(key, plain(text, most)) for key, text in texts[:60] if text]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {text}" for key, item in value.items() if (text := _text(item)))
    if isinstance(value, list):
        nested = any(isinstance(item, list) for item in value)
        return ("; " if nested else ", ").join(filter(None, map(_text, value)))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _part(name: str) -> str:
    """A file of this package, unchanged, so that the policy's hash is right."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
