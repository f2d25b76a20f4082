"""A fake of Apple's powermetrics: records in its format, and a program that streams them.

The program takes the arguments of the real one and streams at their interval. FAKE_POWERMETRICS
lists what it does otherwise, separated by commas: late, dies, hangs, nan, batched, clock-step,
deaf, empty, gpu-only, needs-root, ultra (an M2 Ultra's 76 kB), by-line (a write per line). The
file FAKE_POWERMETRICS_LOG receives a copy of its output.
"""

import argparse
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

HEADER = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" '
    '"http://www.apple.com/DTDs/PropertyList-1.0.dtd">\n<plist version="1.0">\n'
)
ULTRA = ("E0", "P0", "P1", "E1", "P2", "P3")
# hw_model, build, and the clusters with their numbers of CPUs and frequencies.
CHIPS = {
    "M1": ("MacBookPro17,1", "22E252", [("E-Cluster", 4, 5), ("P-Cluster", 4, 15)]),
    "M2 Ultra": ("Mac14,14", "23E224", [(f"{name}-Cluster", 4, 16) for name in ULTRA]),
    "M4": ("Mac16,10", "25G229", [("E-Cluster", 6, 8), ("P-Cluster", 4, 19)]),
    "M5 Pro": ("Mac17,8", "26A428", [(f"{n}-Cluster", 5, 16) for n in ("P0", "P1", "S")]),
}
CPU_W, GPU_W = 5.0, 20.0


def record(
    number=0,
    elapsed_ns=500_000_000,
    cpu_mj=2500,
    gpu_mj=10000,
    chip="M1",
    thermal="Nominal",
    ended=None,
    extra="",
    **changes,
) -> bytes:
    """One record; `changes` replace values of the processor, None removes one."""
    model, build, clusters = CHIPS[chip]
    ended = ended or datetime(2026, 10, 4, 23, 7, 7, tzinfo=UTC)
    energies = {"cpu": cpu_mj, "gpu": gpu_mj, "ane": 0}
    values = {}
    for key, energy_mj in energies.items():
        values[f"{key}_energy"] = f"<integer>{energy_mj}</integer>"
        values[f"{key}_power"] = f"<real>{energy_mj / elapsed_ns * 1e9:g}</real>"
    values["combined_power"] = f"<real>{sum(energies.values()) / elapsed_ns * 1e9:g}</real>"
    values |= changes
    processor = "".join(f"<key>{k}</key>\n{v}\n" for k, v in values.items() if v is not None)
    states = "".join(_cluster(*c, elapsed_ns, number) for c in clusters)
    # As in real ones: another window, so another energy, and idle_ns twice.
    gpu = (
        f"<key>gpu</key>\n<dict>\n<key>freq_hz</key><real>715.009</real>\n"
        f"<key>idle_ns</key><integer>{number}</integer>\n{_states(7, elapsed_ns)}"
        f"<key>idle_ns</key><integer>{number}</integer>\n"
        f"<key>gpu_energy</key><integer>{gpu_mj + 884}</integer>\n</dict>\n"
    )
    return (
        f"{HEADER}<dict>\n<key>is_delta</key><true/>\n"
        f"<key>elapsed_ns</key><integer>{elapsed_ns}</integer>\n"
        f"<key>hw_model</key><string>{model}</string>\n"
        f"<key>kern_osversion</key><string>{build}</string>\n"
        f"<key>kern_bootargs</key><string></string>\n"
        f"<key>kern_boottime</key><integer>1791154121</integer>\n"
        f"<key>timestamp</key><date>{ended:%Y-%m-%dT%H:%M:%SZ}</date>\n"
        f"<key>processor</key>\n<dict>\n<key>clusters</key>\n<array>\n{states}</array>\n"
        f"{processor}</dict>\n<key>thermal_pressure</key><string>{thermal}</string>\n"
        f"{gpu}{extra}</dict>\n</plist>\n"
    ).encode()


def stream(records) -> bytes:
    """Records as powermetrics writes them: a NUL before all but the first."""
    return b"\0".join(records)


def _cluster(name, cpus, frequencies, elapsed_ns, number) -> str:
    each = "".join(
        f"<dict>\n<key>cpu</key><integer>{cpu}</integer>\n<key>freq_hz</key><real>9e+08</real>\n"
        f"<key>idle_ns</key><integer>{number * 7 + cpu}</integer>\n"
        f"<key>idle_ratio</key><real>0.5</real>\n{_states(frequencies, elapsed_ns)}</dict>\n"
        for cpu in range(cpus)
    )
    return (
        f"<dict>\n<key>name</key><string>{name}</string>\n<key>hw_resid_counters</key><true/>\n"
        f"<key>freq_hz</key><real>1.28045e+09</real>\n<key>idle_ratio</key><real>nan</real>\n"
        f"{_states(frequencies, elapsed_ns)}<key>cpus</key>\n<array>\n{each}</array>\n</dict>\n"
    )


def _states(count, elapsed_ns) -> str:
    each = "".join(
        f"<dict>\n<key>freq</key><integer>{600 + 228 * n}</integer>\n"
        f"<key>used_ns</key><integer>{elapsed_ns // count}</integer>\n"
        f"<key>used_ratio</key><real>{1 / count:g}</real>\n</dict>\n"
        for n in range(count)
    )
    return f"<key>dvfm_states</key>\n<array>\n{each}</array>\n"


def install(folder: Path) -> tuple[str, str, str]:
    """Write `sudo` and `powermetrics` to a folder; returns the command of a meter.

    This sudo requires -n, remains the parent process as the real one does and relays SIGTERM. With
    FAKE_SUDO=password it asks for a password.
    """
    folder.mkdir(exist_ok=True)
    sudo, powermetrics = folder / "sudo", folder / "powermetrics"
    sudo.write_text(
        "#!/bin/sh\n"
        '[ "$1" = -n ] || { echo "sudo would prompt" >&2; exit 99; }\nshift\n'
        '[ "$FAKE_SUDO" = password ] && { echo "sudo: a password is required" >&2; exit 1; }\n'
        '"$@" &\nchild=$!\ntrap "kill -TERM $child" TERM\nwait $child\ncode=$?\n'
        "[ $code -gt 128 ] && { trap - TERM; wait $child; code=$?; }\nexit $code\n"
    )
    powermetrics.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" "$@"\n')
    for program in (sudo, powermetrics):
        program.chmod(0o755)
    return str(sudo), "-n", str(powermetrics)


def write(data, by_line):
    """To stdout and to the log, without a stop in between."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    for part in data.splitlines(keepends=True) if by_line else [data]:
        os.write(1, part)
    if log_path := os.environ.get("FAKE_POWERMETRICS_LOG"):
        with Path(log_path).open("ab") as log:
            log.write(data)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def run(interval_s, count, misdeeds):
    """Write a record per interval."""
    if "late" in misdeeds:
        time.sleep(0.3)
    before_ns, cpu_mj = time.monotonic_ns(), 0
    for number in range(count):
        begins_batch = "batched" in misdeeds and number % 4 == 0  # time to stop after a batch
        time.sleep(interval_s * 5 if begins_batch else interval_s)
        if number == 4 and "dies" in misdeeds:
            sys.exit(1)
        while number == 4 and "hangs" in misdeeds:
            time.sleep(3600)
        now_ns = time.monotonic_ns()
        elapsed_ns, before_ns = now_ns - before_ns, now_ns
        cpu_mj += round(CPU_W * elapsed_ns / 1e6)
        published_mj = 0 if "batched" in misdeeds and number % 4 < 3 else cpu_mj
        cpu_mj -= published_mj
        changes = {"cpu_energy": None} if "gpu-only" in misdeeds else {}
        if number == 2 and "nan" in misdeeds:
            changes = {"cpu_energy": "<real>nan</real>"}
        step_s = 3600 if "clock-step" in misdeeds and number > 2 else 0
        data = record(
            number,
            elapsed_ns,
            published_mj,
            round(GPU_W * elapsed_ns / 1e6),
            chip="M2 Ultra" if "ultra" in misdeeds else "M1",
            ended=datetime.fromtimestamp(time.time() + step_s, UTC),
            **changes,
        )
        write((b"\0" if number else b"") + data, "by-line" in misdeeds)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-f", required=True, choices=["plist"])
    parser.add_argument("-b", required=True, choices=["0"])
    parser.add_argument("-i", required=True, type=int)
    parser.add_argument("-n", required=True, type=int)
    parser.add_argument("--samplers", required=True)
    args = parser.parse_args()
    if args.samplers != "cpu_power,gpu_power,thermal":
        sys.exit("unrecognized sampler")
    misdeeds = os.environ.get("FAKE_POWERMETRICS", "").split(",")
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in misdeeds else lambda *_: sys.exit(0))
    if "needs-root" in misdeeds:
        sys.exit("powermetrics must be invoked as the superuser")
    if "empty" in misdeeds:
        return
    run(args.i / 1e3 * 1.02, args.n, misdeeds)


if __name__ == "__main__":
    main()
