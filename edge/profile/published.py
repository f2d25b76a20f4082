"""Published figures with their sources: Table 11 of the Stable Code Technical Report."""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from edge.device.roofline import ceiling_tok_s
from edge.profile.profile import OWN_ENGINES, ModelInfo, Profile, Row, RowSummary


@dataclass(frozen=True)
class PublishedRow:
    """One line of Table 11; `bytes_per_token` are the weights that a token reads, ours."""

    artefact: str
    framework: str
    precision: str
    decode_tok_s: float
    power_w: float
    bytes_per_token: int

    @property
    def joules_per_token(self) -> float:
        """W / (tok/s): computed, the report does not print it."""
        return self.power_w / self.decode_tok_s

    def share_of(self, bandwidth_gb_s: float) -> float:
        """The published rate as a share of the ceiling that a memory bandwidth sets."""
        return self.decode_tok_s / ceiling_tok_s(self.bytes_per_token, bandwidth_gb_s * 1e9)

    def is_of(self, row: RowSummary) -> bool:
        """The row is of the same artefact, on the framework's own engine."""
        return (row.artefact, row.engine) == (self.artefact, OWN_ENGINES[self.framework])

    def measured(self, profile: Profile) -> Row | None:
        """The first row of a profile that has a rate for it."""
        rows = (row for row in profile.rows if row.counts and row.decode_tok_s)
        return next((row for row in rows if self.is_of(row)), None)


def table11() -> dict[str, Any]:
    """The whole file: rows, source, caveat, what the report leaves open."""
    return _read("table11.json")


def other_figures() -> dict[str, Any]:
    """Rates of other models, with their sources."""
    return _read("apple_silicon.json")


def table11_rows() -> list[PublishedRow]:
    """In the report's order."""
    return [PublishedRow(**row) for row in table11()["rows"]]


def is_published_model(model: ModelInfo) -> bool:
    """The model is that of Table 11, or random weights of its shape.

    By its name as well: stablelm-3b-4e1t has as many parameters.
    """
    theirs = table11()["model"]
    return theirs["name"] in model.name and model.parameters == theirs["parameters"]


@cache
def _read(name: str) -> dict[str, Any]:
    text = (resources.files("edge") / "data" / name).read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data
