"""`edge bench --each` under mlx.launch: every device measures itself, rank 0 collects the profiles.

A rank that ends with an error makes mlx.launch end all of them. So a device that fails while it
measures reports that to rank 0 like a result, and the others go on.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psutil

from edge.bench.engines.engine import SERVER
from edge.bench.plan import Target
from edge.bench.runner import stopped_by_sigterm
from edge.bench.writer import ProfileWriter
from edge.cli.report import print_devices
from edge.convert.artefacts.manifest import origin_digest
from edge.device.software import compared_versions
from edge.distributed import (
    Lost,
    check_same,
    gather,
    host_name,
    only_rank_0_prints,
    rank,
    ranks,
    unique_names,
)
from edge.errors import EdgeError
from edge.formats.files import atomic_write, safe_name
from edge.profile.profile import Profile, decode, write
from edge.report.devices import compare_devices, devices_text

Join = Callable[[Sequence[Target]], list[str]]
# mlx 0.32's mlx.launch takes a whole core, as it looks at its processes without a pause.
FREE_CORES, LOOK_S = 0.1, 0.5


class Device(msgspec.Struct):
    """A rank's machine, and the folder on it where the profile is saved."""

    host: str
    boot_s: float
    folder: str


class Report(msgspec.Struct):
    """What a device measured, a profile as JSON, or why it failed."""

    profile: str = ""
    failure: str = ""


@dataclass
class Fleet:
    """The devices by rank, known once all have joined."""

    folder: Path
    devices: list[Device] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return unique_names([device.host for device in self.devices])

    def join(self, targets: Sequence[Target]) -> list[str]:
        """Compares software and artefacts; sentences on what else this machine is busy with."""
        made = (target for target in targets if SERVER not in target.engines)
        digests = {
            f"the fingerprint of {target.recipe.name}": origin_digest(Path(target.path))
            for target in made
        }
        check_same(compared_versions() | digests)
        own = Device(host_name(), psutil.boot_time(), str(self.folder.absolute()))
        found = gather(msgspec.json.encode(own))
        self.devices = [msgspec.json.decode(data, type=Device) for data in found]
        machines = [(device.host, device.boot_s) for device in self.devices]
        busy = list(busy_with(machines.count((own.host, own.boot_s)) - 1, launcher_cores()))
        for sentence in busy:
            _say(f"warning: {sentence}")
        return busy

    def report(self, measure: Callable[[Join], ProfileWriter]) -> Report:
        """What this device measured; an error before all have joined ends all."""
        try:
            return Report(profile=measure(self.join).profile.to_json())
        except (EdgeError, OSError, MemoryError) as error:
            if not self.devices:
                raise
            return Report(failure=str(error) or type(error).__name__)

    @contextmanager
    def naming_folders(self) -> Iterator[None]:
        """Says where the profiles are if this process is stopped or another is lost."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, Lost):
            if self.devices:
                pairs = zip(self.names, self.devices, strict=True)
                places = ", ".join(f"{name}:{device.folder}" for name, device in pairs)
                _say(f"what each device measured is in {places}; copy it with scp")
            raise


def busy_with(others: int, launcher: float) -> Iterator[str]:
    if others:
        yield (
            f"{others} more of --each measure on this machine at the same time, so rates are low: "
            f"list it once in the hostfile"
        )
    if launcher > FREE_CORES:
        yield (
            f"mlx.launch takes {launcher:.0%} of a core of this machine, so power is high and "
            f"rates can be low: start it on a machine that is not in the hostfile"
        )


def launcher_cores() -> float:
    """How much of a core the mlx.launch above this process takes; 0 where it is elsewhere."""
    with suppress(psutil.Error):
        for parent in psutil.Process().parents():
            if any(Path(word).name == "mlx.launch" for word in parent.cmdline()[:2]):
                return parent.cpu_percent(LOOK_S) / 100
    return 0.0


def run_each(args: argparse.Namespace, measure: Callable[[Join], ProfileWriter]) -> int:
    """Measures here; collects and compares the profiles of all devices on rank 0."""
    if ranks() == 1:
        raise EdgeError(
            "--each is for several machines; start it with mlx.launch --hostfile hosts.json -- "
            "edge bench ... --each, or leave it out."
        )
    fleet = Fleet(args.save)
    with only_rank_0_prints(), stopped_by_sigterm(), fleet.naming_folders():
        report = fleet.report(measure)
        _say(f"{fleet.names[0]} is done; waiting up to {args.timeout} s for the others")
        found = gather(msgspec.json.encode(report), args.timeout)
        reports = [msgspec.json.decode(data, type=Report) for data in found]
        return 0 if rank() > 0 else _collected(args, fleet.names, reports)


def _collected(args: argparse.Namespace, names: Sequence[str], reports: Sequence[Report]) -> int:
    """Saves the profiles in a folder of this run, with the comparison of the devices."""
    folder = args.save / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ-devices")
    page, is_good = folder / "devices.md", True
    for number, (name, report) in enumerate(zip(names, reports, strict=True), 1):
        if report.failure:
            _say(f"warning: {name} failed: {report.failure}")
            is_good = False
            continue
        profile = decode(report.profile.encode(), Path(name), Profile)
        path = folder / safe_name(f"{number}-{profile.device.name.replace(' ', '-')}.json")
        write(profile, path)
        print(f"saved {path} of {name}", file=sys.stderr)
        is_good &= all(row.counts for row in profile.rows)
    if all(report.failure for report in reports):
        return 1
    compared = compare_devices(folder)
    with atomic_write(page) as partial:
        partial.write_text(devices_text(compared) + "\n", encoding="utf-8")
    print_devices(args, compared)
    print(f"saved {page}", file=sys.stderr)
    return 0 if is_good else 1


def _say(sentence: str) -> None:
    print(f"edge bench: {sentence}", file=sys.stderr)
