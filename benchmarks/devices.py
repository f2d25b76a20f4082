"""Times `edge report --devices` on many generated profiles.

    python benchmarks/devices.py                   # ten thousand profiles of 50 to 100 kB
    python benchmarks/devices.py --profiles 1000 --keep /tmp/profiles

Writes profiles of invented devices, two in a hundred of them broken, then loads and renders the
summary in another process, several times. Prints wall and processor seconds, and peak resident
memory. The first run may read the files from disk, later ones from the system's cache.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from apart import run_process  # noqa: E402

from edge.profile.check import check  # noqa: E402
from tests.support.profiles import CHIPS, make_profile, typed  # noqa: E402

CREATED = "2026-03-01T10:00:00+00:00"
MACS = [f"Mac{major},{minor}" for major in (13, 14, 15, 16) for minor in (1, 2)]
MODELS = ("stable-code-3b", "stablelm-3b-4e1t", "stablelm-2-1_6b")
TOKENS = (256, 320)
LOAD = (
    "import sys; from pathlib import Path; "
    "from edge.report.devices import compare_devices, devices_text; "
    "c = compare_devices(Path(sys.argv[1])); print(devices_text(c)); "
    "print(c.files, len(c.rows), len(c.left_out), file=sys.stderr)"
)


def texts() -> Iterator[str]:
    """A profile of every device, model and length, as `edge bench` writes it."""
    kinds = itertools.product(CHIPS, MACS, MODELS, TOKENS)
    for seed, (chip, mac, model, generate) in enumerate(kinds):
        profile = make_profile(
            chip,
            created=CREATED,
            model=model,
            hw_model=mac,
            rate=random.Random(seed).uniform(0.7, 1.3),
            generate=generate,
            seed=seed,
            samples=0,
        )
        yield typed(profile).to_json()


def write(folder: Path, count: int) -> int:
    """Writes profiles with different times; returns their bytes."""
    kinds, total = list(texts()), 0
    for number in range(count):
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_772_000_000 + 97 * number))
        text = kinds[number % len(kinds)].replace(CREATED, f"{at}+00:00")
        path = folder / f"{number % 100:02}" / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        total += path.write_text(partly_broken(text, number % 100), encoding="utf-8")
    return total


def partly_broken(text: str, number: int) -> str:
    """Of a hundred files one is cut in half, and one has a wrong field."""
    if number == 98:
        return text.replace('"verdict": "VALID"', '"verdict": 1', 1)
    return text[: len(text) // 2] if number == 99 else text


def run(folder: Path, count: int, rounds: int) -> None:
    """Generates, checks one profile, measures."""
    total = write(folder, count)
    print(f"{count} profiles, {total / count / 1e3:.0f} kB each, load {os.getloadavg()[0]:.1f}")
    if faults := check([folder / "00" / "0.json"], names=()).faults:
        sys.exit(f"the generated profiles are not valid: {faults[0]}")
    for number in range(rounds):
        command = [sys.executable, "-c", LOAD, str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        wall_s, cpu_s, peak_gb = run_process(command, str(folder / "summary.md"), environment)
        lines = len((folder / "summary.md").read_text(encoding="utf-8").splitlines())
        print(
            f"run {number + 1}: {wall_s:.1f} s wall, {cpu_s:.1f} s processor, "
            f"{peak_gb:.2f} GB peak, {lines} lines"
        )


def main() -> None:
    """Parses and runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profiles", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="write here and leave it")
    args = parser.parse_args()
    if args.keep:
        run(args.keep, args.profiles, args.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), args.profiles, args.rounds)


if __name__ == "__main__":
    main()
