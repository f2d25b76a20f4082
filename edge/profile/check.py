"""Whether profiles may be published: their shape, their numbers, and what they give away.

faults = check_profiles([Path("profiles/measured")])
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from edge.errors import EdgeError, printable
from edge.formats.files import strict_json
from edge.profile.fault import Fault, Finding, Place, spelt
from edge.profile.numbers import row_faults
from edge.profile.reading import MAX_BYTES, SCHEMA
from edge.profile.shape import profile_schema, shape_faults, size_faults
from edge.profile.text import header_faults, own_names, privacy_faults, reason_faults

__all__ = ["Checked", "Fault", "check", "check_profiles"]
# More tell nothing new about one file.
MOST_FAULTS = 50
REQUEST = "give a JSON file that `edge bench` wrote, or a folder of them"


@dataclass(frozen=True)
class Checked:
    """What came of it: how many files there were, and what is wrong with them."""

    files: int
    faults: list[Fault]

    @property
    def exit_code(self) -> int:
        """0 if nothing is wrong."""
        return 1 if self.faults else 0

    def text(self) -> str:
        """A line per fault, and a last one that counts."""
        broken = len({fault.file for fault in self.faults})
        profiles = f"{self.files} {'profile' if self.files == 1 else 'profiles'}"
        if not self.faults:
            return f"{profiles} checked: no faults."
        found = f"{len(self.faults)} {'fault' if len(self.faults) == 1 else 'faults'}"
        return "\n".join([*map(str, self.faults), f"{profiles} checked: {found} in {broken}."])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def check_profiles(paths: Iterable[Path], names: Sequence[str] | None = None) -> list[Fault]:
    """What is wrong with profiles, file by file.

    Args:
        paths: files, and folders whose *.json are checked with all below them.
        names: private words; by default the names of this machine and its user.

    Raises:
        EdgeError: there is nothing to check.
    """
    return check(paths, names).faults


def check(paths: Iterable[Path], names: Sequence[str] | None = None) -> Checked:
    """The same, with the number of files."""
    private = own_names() if names is None else names
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise EdgeError(f"There is nothing to check: {REQUEST}.")
    return Checked(len(files), [fault for file in files for fault in _file_faults(file, private)])


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [
        Path(parent, name)
        for parent, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(".json")
    ]
    if not found:
        raise EdgeError(f"{path} has no *.json file: {REQUEST}.")
    return sorted(found)


def _file_faults(path: Path, names: Sequence[str]) -> Iterator[Fault]:
    name = printable(os.fsencode(path).decode(errors="replace"))
    found = list(islice(_findings(path, names), MOST_FAULTS + 1))
    for finding in found[:MOST_FAULTS]:
        yield Fault(name, spelt(finding.place), finding.what)
    if len(found) > MOST_FAULTS:
        yield Fault(name, "", f"has more than {MOST_FAULTS} faults: mend these first.")


def _findings(path: Path, names: Sequence[str]) -> Iterator[Finding]:
    try:
        data = strict_json(_read(path))
    except (EdgeError, ValueError) as error:
        yield Finding((), f"is no profile ({_sentence(error)}): {REQUEST}.")
        return
    refusal = _refusal(data)
    if refusal is not None:
        yield Finding((), refusal)
        return
    yield from profile_findings(data, names)


def profile_findings(profile: dict[str, Any], names: Sequence[str]) -> Iterator[Finding]:
    """Everything that is wrong with a JSON object of this schema's number."""
    shape = [*shape_faults(profile, profile_schema()), *size_faults(profile)]
    yield from shape
    # Where the shape is wrong, sums would stumble; and one fault is not told twice.
    spoilt = {_part(finding.place) for finding in shape}
    if not spoilt:
        yield from header_faults(profile)
    device = profile["device"] if not spoilt & {("device",), ()} else None
    rows = profile.get("rows")
    for index, row in enumerate(rows if isinstance(rows, list) else []):
        if not spoilt & {("rows", index), ("rows",), ()}:
            for finding in (*row_faults(row, device), *reason_faults(row)):
                yield Finding(("rows", index, *finding.place), finding.what)
    yield from privacy_faults(profile, names)


def _part(place: Place) -> Place:
    """The part of a profile that stands or falls together: a key's value, or one row."""
    return place[:2] if place[:1] == ("rows",) else place[:1]


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise EdgeError("it is missing" if not path.exists() else "it is no regular file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise EdgeError(f"it cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise EdgeError("it is larger than any profile")
    return data


def _refusal(data: Any) -> str | None:
    """Why the schema cannot be asked, None if it can."""
    if not isinstance(data, dict) or "schema" not in data:
        return f"is no profile (it has no schema number): {REQUEST}."
    schema = data["schema"]
    if type(schema) is int and SCHEMA < schema < 10**9:
        return f"has schema {schema} and this edge checks up to {SCHEMA}: install a newer edge."
    return None


def _sentence(error: Exception) -> str:
    return printable(str(error)).removesuffix(".")[:300]
