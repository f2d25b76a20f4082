"""RAPL through Linux's powercap: energy counters of Intel's and AMD's processors.

    /sys/class/powercap/intel-rapl:N/{name,energy_uj,max_energy_range_uj}      a package, or psys
    /sys/class/powercap/intel-rapl:N:M/...                                     core, uncore, dram

AMD's Zen has the same driver and names. A package contains its core and uncore; psys is the
platform and contains the packages; dram is separate. `intel-rapl-mmio:N` is the same package a
second time. So packages and dram are added, the rest is not.

Tested on a copy of the directory tree, never on a processor: virtual machines have no RAPL.
"""

import re
import threading
from pathlib import Path

from edge.power.polling import PollingMeter, Reading

ROOT = Path("/sys/class/powercap")
ZONE = re.compile(r"intel-rapl:(\d+)(?::\d+)?")
ADDING_UP = ("package", "dram")
# Counters move every millisecond; those of a virtual machine may never move.
PROBE_S, PROBES = 0.02, 5


class Zone:
    """One counter, unwrapped: it restarts at 0 after `max_energy_range_uj`, within minutes."""

    def __init__(self, path: Path):
        package = ZONE.fullmatch(path.name)
        name = (path / "name").read_text(encoding="utf-8").strip()
        self._path = path
        self.adds_up = name.startswith(ADDING_UP)
        # The names of packages and psys are unique, those of a package's parts are not.
        self.rail = f"{name}-{package[1]}" if package and path.name.count(":") > 1 else name
        self._range_uj = int((path / "max_energy_range_uj").read_text(encoding="utf-8"))
        self._last_uj, self._wrapped_uj = read_uj(path), 0

    def joules(self) -> float:
        """Joules since an arbitrary start. Must be called at least once per wrap-around."""
        now_uj = read_uj(self._path)
        if now_uj < self._last_uj:
            self._wrapped_uj += self._range_uj
        self._last_uj = now_uj
        return (self._wrapped_uj + now_uj) / 1e6


class RaplMeter(PollingMeter):
    """Joules of every processor package and DRAM counter."""

    source = "rapl"

    def __init__(self) -> None:
        super().__init__()
        self._zones: list[Zone] = []
        self.unavailable = self._open_zones()
        names = [zone.rail for zone in self._zones if zone.adds_up]
        self.pacing = [name for name in names if name.startswith("package")]
        dram = "" if len(names) > len(self.pacing) else " and without DRAM"
        self.boundary = f"{' + '.join(names) or 'processor'} (RAPL), without GPU boards{dram}"

    def _read(self) -> Reading:
        joules = [(zone, zone.joules()) for zone in self._zones]
        return Reading(
            joules={zone.rail: j for zone, j in joules if zone.adds_up},
            beside={zone.rail: j for zone, j in joules if not zone.adds_up},
        )

    def _open_zones(self) -> str | None:
        """Open every zone; the reason if nothing can be measured."""
        paths = sorted(p for p in ROOT.glob("intel-rapl:*") if ZONE.fullmatch(p.name))
        try:
            self._zones = [Zone(path) for path in paths]
        except PermissionError:  # fine energy readings leak what is computed
            files = f"{ROOT}/intel-rapl:*/energy_uj"
            allow = f"sudo chgrp $(id -gn) {files} && sudo chmod g+r {files}"
            return f"RAPL's counters need root (CVE-2020-8694); to allow them until reboot: {allow}"
        except (OSError, ValueError) as error:
            return f"RAPL's counters under {ROOT} cannot be read ({error}); choose another source"
        packages = [zone for zone in self._zones if zone.rail.startswith("package")]
        if not packages:
            return (
                f"there is no RAPL package under {ROOT}: virtual machines and containers have "
                "none; on a PC try sudo modprobe intel_rapl_msr"
            )
        begin = [zone.joules() for zone in packages]
        for _ in range(PROBES):
            self.wait(threading.Event(), PROBE_S)
            if all(zone.joules() != j for zone, j in zip(packages, begin, strict=True)):
                return None
        return f"RAPL's counters under {ROOT} do not move, as in a virtual machine"


def read_uj(zone: Path) -> int:
    return int((zone / "energy_uj").read_text(encoding="utf-8"))
