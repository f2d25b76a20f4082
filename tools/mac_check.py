"""Check untested assumptions about Macs on a Mac: writes one text file to send.

    make mac-check                                   # about ten minutes; writes mac-check.txt
    python tools/mac_check.py --quick                # without the suites and Table 11

Each check has what was expected and what was found, without a verdict. Names of the machine and its
user, folders, serial numbers and addresses are removed; read the file before you send it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.device.system import PATH
from edge.profile.check import PRIVATE, own_names

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 1800
LAST_LINES = 12
FUSED = (
    "import mlx.core as mx; q = mx.zeros((1, 32, 1, 96), mx.float16); "
    "mx.eval(mx.fast.scaled_dot_product_attention(q, q, q, scale=1.0, force_fused=True)); "
    "print('fused')"
)
SAMPLERS = "cpu_power,gpu_power,thermal"
CRASHES = "import sys, pathlib; since = float(sys.argv[1]); " + (
    "print(sum(p.stat().st_mtime > since and 'python' in p.name.lower() for p in "
    "(pathlib.Path.home() / 'Library/Logs/DiagnosticReports').glob('*.ips')))"
)


@dataclass(frozen=True)
class Check:
    """A command and its expected output; `{python}`, `{log}` and `{since}` are replaced."""

    title: str
    expected: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    is_long: bool = False


def python(code: str, *arguments: str) -> tuple[str, ...]:
    """A command that runs Python code."""
    return ("{python}", "-c", code, *arguments)


def shell(line: str) -> tuple[str, ...]:
    """A shell command."""
    return ("sh", "-c", line)


def edge(*words: str) -> tuple[str, ...]:
    """A command of edge."""
    return ("{python}", "-m", "edge", *words)


BENCH = ("bench", "demo", "--save", "profiles/local")
SHORT = ("-p", "64", "-n", "32", "--min-window", "1")
DEEP = ("bench", "synthetic:stable-code-3b", "--layers", "2", "--rows", "mlx-int4", "-d", "2048")
RECORD = f"sudo -n powermetrics -f plist -b 0 -i 500 -n 5 --samplers {SAMPLERS} > {{log}}"
MLX_TAG = "from edge.device.software import mlx_metal_tag; print(mlx_metal_tag())"
MLX_DEVICE = "import mlx.core as mx; print(mx.default_device(), mx.device_info())"
LEVELS = ("hw.perflevel0.name", "hw.perflevel1.name", "hw.perflevel2.name")
PRESSURE = "kern.memorystatus_vm_pressure_level"
THERMAL = "com.apple.system.thermalpressurelevel"
PYTEST = ("{python}", "-m", "pytest", "-n", "2")
CHECKS = (
    Check("python", "3.11 to 3.13", ("{python}", "--version")),
    Check("macOS", "14 or newer, as in the system menu", ("sw_vers", "-productVersion")),
    Check("uv", "any", ("uv", "--version")),
    Check("tools", "a folder, and a compiler", shell("xcode-select -p && cc --version")),
    Check("MLX's wheel", "macosx_26_0_arm64 from macOS 26 on, else 14_0", python(MLX_TAG)),
    Check("MLX's device", "the chip's name and its memory", python(MLX_DEVICE)),
    Check("fused attention", "fused: heads of 80 are padded to 96 for it", python(FUSED)),
    Check("chip", "its name", ("sysctl", "-n", "machdep.cpu.brand_string")),
    Check("levels", "Performance and Efficiency, on some M5 Super", ("sysctl", "-n", *LEVELS)),
    Check("GPU cores", "a number", shell("ioreg -rc AGXAccelerator | grep gpu-core-count")),
    Check("mains or battery", "Now drawing from 'AC Power'", ("pmset", "-g", "batt")),
    Check("low power mode", "a mode with a number", shell("pmset -g | grep -i powermode")),
    Check("thermal level", "0 on a cool machine, up to 4", ("notifyutil", "-g", THERMAL)),
    Check("memory pressure", "1, 2 or 4", ("sysctl", "-n", PRESSURE)),
    Check("powermetrics", "the bytes of five records", shell(f"{RECORD} && wc -c < {{log}}")),
    Check("replay", "joules of about 2.5 s, no warning", edge("power", "--replay", "{log}")),
    Check("meter", "watts of two quiet seconds", edge("power", "--seconds", "2")),
    Check("powermetrics left", "nothing, exit code 1", ("pgrep", "-x", "powermetrics")),
    Check("doctor", "this Mac's properties, with advice for it", edge("doctor")),
    Check("llama.cpp row", "no warning about its exit", edge(*BENCH, "--rows", "gguf-f16", *SHORT)),
    Check("MLX row at depth", "no wrong logits beyond 1,024 positions", edge(*DEEP, *SHORT)),
    Check("crash reports", "0 since this check began", python(CRASHES, "{since}")),
    Check("suite on the CPU", "passed, none failed", PYTEST, is_long=True),
    Check(
        "suite on the GPU",
        "failures are worth a report: the bounds were set on a CPU",
        (*PYTEST, "tests/model", "tests/generate"),
        (("EDGE_TEST_DEVICE", "gpu"),),
        is_long=True,
    ),
    Check("Table 11", "five rows with watts", edge(*BENCH, "--suite", "table11"), is_long=True),
)


def safe_path() -> str:
    """The system's folders before those of the PATH, which may contain "."."""
    return os.pathsep.join([PATH, *filter(os.path.isabs, os.get_exec_path())])


def found(check: Check, fill: dict[str, str], path: str) -> str:
    """Last lines of a command's output, and its exit code unless 0."""
    command = [word.format(**fill) for word in check.command]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            env={**os.environ, **dict(check.environment), "PATH": path},
            check=False,
        )
    except FileNotFoundError:
        return f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return f"not finished after {TIMEOUT_S} s"
    lines = done.stdout.strip().splitlines()[-LAST_LINES:]
    return "\n".join([*lines, *([f"exit code {done.returncode}"] if done.returncode else [])])


def without_names(text: str) -> str:
    """The text with private names and folders replaced."""
    text = text.replace(str(ROOT), "CHECKOUT").replace(str(Path.home()), "~")
    for pattern, what in PRIVATE:
        text = pattern.sub(f"({what})", text)
    for name in own_names():
        text = re.sub(rf"\b{re.escape(name)}\b", "(a name)", text, flags=re.IGNORECASE)
    return text


def main(arguments: Sequence[str]) -> int:
    """Run the checks, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    titles = [check.title for check in CHECKS]
    parser.add_argument("--only", nargs="+", choices=titles, default=titles, metavar="TITLE")
    parser.add_argument("--quick", action="store_true", help="without the suites and Table 11")
    parser.add_argument("--out", type=Path, default=Path("mac-check.txt"))
    parser.add_argument("--path", default=safe_path(), help="folders of the system's programs")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        stamp = Path(folder, "began")
        stamp.touch()
        fill = {"python": sys.executable, "log": str(Path(folder, "log.plist"))}
        fill["since"] = str(stamp.stat().st_mtime)
        parts = []
        for check in CHECKS:
            if check.title not in args.only or (args.quick and check.is_long):
                continue
            print(f"{check.title} …", flush=True)
            output = without_names(found(check, fill, args.path))
            parts.append(f"## {check.title}\nexpected: {check.expected}\nfound:\n{output}\n")
    args.out.write_text("\n".join(parts), encoding="utf-8")
    print(f"wrote {args.out}; read it, then send it as docs/mac.md says")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
