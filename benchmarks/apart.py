"""Alternating measurements, each in its own process if necessary.

mlx-lm runs with the BLAS that MLX comes with, edge with its own (edge/linux_cpu.py), and a
process has one of them. Only one process computes at a time.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from edge.device.describe import describe_device
from edge.device.software import software_versions
from edge.formats.files import atomic_write
from edge.linux_cpu import KEEP_BLAS, blas

# Between two attempts to reach a server that starts.
POLL_S = 0.005
# A round's measurements, by name.
Speeds = dict[str, float]
# Called once in the process that measures; returns the function for every round.
Make = Callable[[], Callable[[], Speeds]]
Found = TypeVar("Found")


class Used(NamedTuple):
    """Wall and processor seconds of a process, and its peak resident gigabytes."""

    wall_s: float
    cpu_s: float
    peak_gb: float


def in_turn(
    calls: Mapping[str, Callable[[], Found]], rounds: int, warmups: int = 1
) -> dict[str, list[Found]]:
    """Results of every call per round, in rotating order; warm-up rounds are left out."""
    names = list(calls)
    results: dict[str, list[Found]] = {name: [] for name in names}
    for turn in range(-warmups, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found = calls[name]()
            if turn >= 0:
                results[name].append(found)
    return results


def write_json(path: Path | None, method: Mapping[str, Any], results: Sequence[Any]) -> None:
    """Writes results with device, software and method, without folders of this machine."""
    if path is None:
        return
    document = {
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": asdict(describe_device()),
        "load_1m": os.getloadavg()[0],
        "software": software_versions(),
        "method": dict(method),
        "results": list(results),
    }
    with atomic_write(path) as partial_file:
        partial_file.write_text(json.dumps(document, indent=1) + "\n")


def run_process(command: Sequence[str], out: str, environment: Mapping[str, str]) -> Used:
    """Runs a command with its stdout in a file; exits if it fails."""
    begin = time.monotonic()
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [(os.POSIX_SPAWN_OPEN, 1, out, flags, 0o644)]
    pid = os.posix_spawn(command[0], list(command), environment, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    wall_s = time.monotonic() - begin
    return Used(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e9)


@contextmanager
def served(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], int, float]]:
    """A server at a free port: its process, the port, and the seconds to its first answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    begin = time.monotonic()
    words = [*command, "--port", str(port)]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log) as process,
    ):
        try:
            while not _answers(port):
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{' '.join(words)} ended: {log.read().decode()}")
                time.sleep(POLL_S)
            yield process, port, time.monotonic() - begin
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    """Whether an infill of one token is answered, which llama-server refuses while it loads."""
    with closing(HTTPConnection("127.0.0.1", port)) as connection:
        try:
            body = {"input_prefix": "def f(a", "input_suffix": "):\n", "n_predict": 1}
            connection.request("POST", "/infill", json.dumps(body))
            return connection.getresponse().status == 200
        except ConnectionError:
            return False


@contextmanager
def apart(makes: Mapping[str, Make], stock: set[str]) -> Iterator[dict[str, Callable[[], Speeds]]]:
    """Starts a process for each name; yields the functions that run a round.

    `makes` are pickled: functions of a module, or `partial`s of them. Names in `stock` keep the
    BLAS that MLX comes with.
    """
    with ExitStack() as pools:
        calls = {}
        for name, make in makes.items():
            pool = pools.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
            os.environ.pop(KEEP_BLAS, None)
            if name in stock:
                os.environ[KEEP_BLAS] = "1"
            print(f"  {name}: {pool.submit(_prepare, make).result()}", flush=True)
            os.environ.pop(KEEP_BLAS, None)
            calls[name] = partial(_round, pool)
        yield calls


def _prepare(make: Make) -> str:
    global _call
    _call = make()
    return blas()


def _round(pool: ProcessPoolExecutor) -> Speeds:
    return pool.submit(_run).result()


def _run() -> Speeds:
    return _call()
