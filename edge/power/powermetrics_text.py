"""The text that powermetrics prints without `-f plist`, of macOS 11 to 26 and of Intel Macs.

Whole milliwatts, so plist is better wherever one can choose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise

from edge.power.powermetrics_record import BadRecordError, Record, check_energy

# "Summary" says all power again, for the whole run.
HEADER = re.compile(
    r"^\*\*\* (?P<kind>Sampled|Summary) system activity \((?P<when>[^)\n]{1,64})\)"
    r" \((?P<elapsed_ms>\d{1,12}(?:\.\d{1,6})?)ms elapsed\) \*\*\*[ \t\r]*$",
    re.MULTILINE,
)
# Whole lines: "E-Cluster Power" is part of "CPU Power".
RAIL = re.compile(
    r"^(?P<name>CPU|Clusters Total|GPU|ANE|DRAM|Package|Combined) Power"
    r"(?: \(CPU \+ GPU \+ ANE\))?: (?P<mw>\d{1,9}) mW[ \t\r]*\n",
    re.MULTILINE,
)
INTEL = re.compile(
    r"^Intel energy model derived package power \(CPUs\+GT\+SA\): "
    r"(\d{1,6}(?:\.\d{1,6})?)W[ \t\r]*\n",
    re.MULTILINE,
)
THERMAL = re.compile(r"^Current pressure level: (\S{1,64})[ \t\r]*\n", re.MULTILINE)
MACHINE = re.compile(r"^Machine model: (\S{1,64})", re.MULTILINE)
BUILD = re.compile(r"^OS version: (\S{1,64})", re.MULTILINE)
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# Each of three parts and their sum is rounded to whole milliwatts.
COMBINED_TOLERANCE_MW = 3


def is_text(head: str) -> bool:
    """Whether this could be the text output."""
    return HEADER.search(head) is not None or head.startswith("Machine model:")


def read_text_records(text: str) -> tuple[list[Record], list[str]]:
    """All records, and a few words for every block that is not believed.

    A run's summary counts only where there is nothing else.
    """
    headers = list(HEADER.finditer(text))
    sampled = [h for h in headers if h["kind"] == "Sampled"]
    ends = {a.start(): b.start() for a, b in pairwise(headers)}
    machine, build = MACHINE.search(text), BUILD.search(text)
    about = (machine[1] if machine else None, build[1] if build else None)
    records, complaints = [], []
    for header in sampled or headers:
        block = text[header.end() : ends.get(header.start(), len(text))]
        try:
            records.append(_read_block(header, block, about))
        except BadRecordError as error:
            complaints.append(str(error))
    return records, complaints


def _read_block(header: re.Match[str], block: str, about: tuple[str | None, str | None]) -> Record:
    elapsed_ns = round(float(header["elapsed_ms"]) * 1e6)
    if elapsed_ns <= 0:
        raise BadRecordError("no elapsed time")
    joules, beside = _energies(block, elapsed_ns)
    thermal = THERMAL.search(block)
    return Record(
        elapsed_ns=elapsed_ns,
        joules=joules,
        beside=beside,
        thermal=thermal[1] if thermal else None,
        ended=_when(header["when"]),
        hw_model=about[0],
        build=about[1],
        digest=hash(header[0] + block.rstrip()),
    )


def _energies(block: str, elapsed_ns: int) -> tuple[dict[str, float], dict[str, float]]:
    intel = INTEL.search(block)
    if intel:
        energy_j = float(intel[1]) * elapsed_ns / 1e9
        return {"Package": check_energy(energy_j, elapsed_ns, "package power")}, {}
    milliwatts: dict[str, int] = {}
    for line in RAIL.finditer(block):  # the GPU sampler repeats "GPU Power": the first counts
        milliwatts.setdefault(line["name"], int(line["mw"]))
    watts = _rails(milliwatts)
    joules = {rail: _joules(mw, elapsed_ns, rail) for rail, mw in watts.items()}
    package = {"Package": milliwatts["Package"]} if "Package" in milliwatts else {}
    return joules, {rail: _joules(mw, elapsed_ns, rail) for rail, mw in package.items()}


def _rails(milliwatts: Mapping[str, int]) -> dict[str, int]:
    """The rails that add up; a block without its last line was cut."""
    cpu = milliwatts.get("CPU", milliwatts.get("Clusters Total"))
    if cpu is None or not {"GPU", "ANE"} <= milliwatts.keys():
        raise BadRecordError("no CPU, GPU and ANE power")
    rails = {"CPU": cpu, "GPU": milliwatts["GPU"], "ANE": milliwatts["ANE"]}
    combined = milliwatts.get("Combined")
    if combined is None and "Package" not in milliwatts:
        raise BadRecordError("neither combined nor package power")
    if combined is not None and abs(combined - sum(rails.values())) > COMBINED_TOLERANCE_MW:
        raise BadRecordError("combined power is not the sum of its parts")
    if "DRAM" in milliwatts:
        rails["DRAM"] = milliwatts["DRAM"]
    return rails


def _joules(milliwatts: int, elapsed_ns: int, rail: str) -> float:
    return check_energy(milliwatts / 1e3 * elapsed_ns / 1e9, elapsed_ns, f"{rail} power")


def _when(text: str) -> datetime | None:
    """`Sat Nov  8 15:54:21 2025 +0900`, in UTC."""
    found = re.fullmatch(
        r"\w{3} (\w{3}) +(\d{1,2}) (\d\d:\d\d:\d\d) (\d{4}) ([+-]\d{4})", text, re.ASCII
    )
    if found is None or found[1] not in MONTHS:
        return None
    try:  # strptime's own %b depends on the locale
        stamp = f"{found[4]}-{MONTHS.index(found[1]) + 1:02}-{found[2]} {found[3]} {found[5]}"
        return datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S %z").astimezone(UTC)
    except (ValueError, OverflowError):
        return None
