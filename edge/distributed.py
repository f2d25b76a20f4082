"""The processes that mlx.launch starts for one command, on one machine or several.

A collective that waits for a process that has died may never return (the ring of mlx 0.32 does
not), and Python handles no signal meanwhile. So collectives run in a thread of their own; the main
thread waits for it, and looks whether the connections to the other processes are still open.
"""

import atexit
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import mlx.core as mx
import msgspec
import numpy as np
import psutil

from edge.errors import EdgeError

# Set for each process by mlx.launch, and by mpirun, which it can use.
MLX_RANK = "MLX_RANK"
RANKS = (MLX_RANK, "OMPI_COMM_WORLD_RANK")
# Machines differ in how long they take to start; connecting is tried for half a minute.
START_S = 300.0
LOOK_S = 1.0
# Ends process $2 when $1, its parent, has ended. While MLX waits for a connection no thread of
# Python runs.
WATCH = "while kill -0 $1 && kill -0 $2; do sleep 1; done 2>/dev/null; kill -9 $2 2>/dev/null"
SIZE_BYTES = 8
ENDED = "another process of mlx.launch has ended or is out of reach"
MOST_NAMED = 4
Result = TypeVar("Result")
_numbers = count(1)


class Lost(EdgeError):
    """Another process has ended, or its machine cannot be reached."""


@cache
def group() -> mx.distributed.Group | None:
    """The processes of mlx.launch; None where there is one, as in every plain run.

    Child processes of this one are none of them. Lost if the processes do not find one another.
    """
    if not any(name in os.environ for name in RANKS) or _is_alone():
        return None
    pids = map(str, (os.getppid(), os.getpid()))
    watch = subprocess.Popen(("/bin/sh", "-c", WATCH, "sh", *pids))
    try:
        found = _interruptible(lambda: mx.distributed.init(strict=True), START_S)
    except Lost as error:
        raise Lost(
            f"the processes of mlx.launch do not find one another ({error}); check the addresses "
            f"in the hostfile and the firewall, or choose another --starting-port."
        ) from None
    finally:
        watch.kill()
        watch.wait()
    for name in RANKS:
        os.environ.pop(name, None)
    return found if found.size() > 1 else None


def _is_alone() -> bool:
    """True for one process, for which mlx.launch writes an empty file of addresses."""
    hostfile = os.environ.get("MLX_HOSTFILE")
    return hostfile is not None and not Path(hostfile).read_text(encoding="utf-8").strip()


def rank() -> int:
    """Number of this process; 0 where there is one."""
    ranks = group()
    return 0 if ranks is None else ranks.rank()


def ranks() -> int:
    found = group()
    return 1 if found is None else found.size()


def broadcast(data: bytes) -> bytes:
    """The bytes of rank 0; those of the others are ignored."""
    return gather(data if rank() == 0 else b"")[0]


def gather(data: bytes, limit_s: float | None = None) -> list[bytes]:
    """The bytes of every rank, in order of rank, on every rank.

    Lost if a rank has ended, or if one does not answer within `limit_s`.
    """
    ranks = group()
    return [data] if ranks is None else _interruptible(lambda: _gather(ranks, data), limit_s)


def _gather(those: mx.distributed.Group, data: bytes) -> list[bytes]:
    stamp = next(_numbers).to_bytes(SIZE_BYTES, "little")
    heads = _all_gather(those, len(data).to_bytes(SIZE_BYTES, "little") + stamp)
    sizes = [int.from_bytes(head[:SIZE_BYTES], "little") for head in heads]
    rows = _all_gather(those, data.ljust(max(sizes), b"\0") + stamp)
    return [row[:size] for row, size in zip(rows, sizes, strict=True)]


def _all_gather(those: mx.distributed.Group, data: bytes) -> list[bytes]:
    """Equally long bytes of all ranks, on the backend's stream: the CPU's for the ring and JACCL.

    Each ends in the number of the exchange, as MLX may give old memory if a connection is lost.
    """
    found = mx.distributed.all_gather(mx.array(np.frombuffer(data, np.uint8)), group=those)
    rows = [row.tobytes() for row in np.array(found).reshape(those.size(), -1)]
    if any(row[-SIZE_BYTES:] != data[-SIZE_BYTES:] for row in rows):
        raise Lost(f"{ENDED}.")
    return rows


def _interruptible(work: Callable[[], Result], limit_s: float | None) -> Result:
    """The result of `work` in the thread of collectives; Ctrl-C and SIGTERM end the wait."""
    future: Future[Result] = Future()
    end_s = math.inf if limit_s is None else time.monotonic() + limit_s
    before = connections().keys()
    _thread().put((future, work))
    try:
        while not wait([future], max(min(LOOK_S, end_s - time.monotonic()), 0)).done:
            if time.monotonic() >= end_s:
                raise Lost(f"another process of mlx.launch gave no answer in {limit_s:g} s.")
            if not before <= connections().keys():
                raise Lost(f"{ENDED}.")
        return future.result()
    except (RuntimeError, ValueError) as error:
        raise Lost(f"{ENDED} ({error}).") from None
    finally:
        if not future.done():  # at its end MLX would wait for the collective, for ever
            atexit.register(os._exit, 1)


def connections() -> dict[Any, int]:
    """Descriptors of this process's open connections by their addresses."""
    found = psutil.Process().net_connections("tcp")
    return {(c.laddr, c.raddr): c.fd for c in found if c.status == psutil.CONN_ESTABLISHED}


@cache
def _thread() -> SimpleQueue[tuple[Future[Any], Callable[[], Any]]]:
    """Queue of the thread of collectives; one thread, as each has MLX streams of its own."""
    calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def serve() -> None:
        while True:
            future, work = calls.get()
            try:
                future.set_result(work())
            except Exception as error:  # raised by `_interruptible`
                future.set_exception(error)

    threading.Thread(target=serve, daemon=True).start()
    return calls


@contextmanager
def only_rank_0_prints() -> Iterator[None]:
    """Drops what other ranks print in the block; errors leave it."""
    if rank() == 0:
        yield
        return
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


def host_name() -> str:
    return os.uname().nodename.removesuffix(".local")


def check_same(facts: Mapping[str, str]) -> None:
    """An EdgeError on rank 0 if a fact differs between ranks; the others end with exit code 0."""
    everyone = [msgspec.json.decode(d) for d in gather(msgspec.json.encode([host_name(), facts]))]
    hosts, found = zip(*everyone, strict=True)
    if difference := difference_of(unique_names(hosts), found):
        if rank() > 0:  # an error here would make mlx.launch end rank 0 before it says so
            sys.exit(0)
        raise EdgeError(difference)


def unique_names(hosts: Sequence[str]) -> list[str]:
    """Names of the ranks: their hosts, with the number where a host has several."""
    return [f"{h} (rank {i})" if hosts.count(h) > 1 else h for i, h in enumerate(hosts)]


def difference_of(names: Sequence[str], facts: Sequence[Mapping[str, str]]) -> str:
    """A sentence with the values and the ranks that have them; empty if all are the same."""
    parts = []
    for key in dict.fromkeys(key for one in facts for key in one):
        by_value: dict[str, list[str]] = {}
        for name, one in zip(names, facts, strict=True):
            by_value.setdefault(one.get(key, "missing"), []).append(name)
        if len(by_value) > 1:
            values = (f"{value} on {', '.join(those)}" for value, those in by_value.items())
            parts.append(f"{key} is {' but '.join(values)}")
    more = f"; and {len(parts) - MOST_NAMED} more" if len(parts) > MOST_NAMED else ""
    return f"{'; '.join(parts[:MOST_NAMED])}{more}: use the same on all." if parts else ""
