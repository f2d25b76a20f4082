"""A command over the processes of mlx.launch: rank 0 runs it, the others compute with it."""

import argparse
import atexit
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edge.bench.runner import stopped_by_sigterm
from edge.child import module_command
from edge.distributed import MLX_RANK
from edge.errors import EdgeError
from edge.linux_cpu import child_environment
from edge.model.follow import ANOTHER, ENDED, INTERRUPTED, end, follow, is_follower

FOLLOWER = module_command("edge.model.follow")
# The model is split for these and for bench; bench --each and eval use the processes otherwise.
SPLIT = ("complete", "chat", "serve")
LOST = ("[ring]", "[jaccl]")  # begin MLX's errors


def run(name: str, args: argparse.Namespace, command: Callable[[], int]) -> int:
    """The exit code of a command, which rank 0 runs if it needs one model."""
    if name == "eval" or (name == "bench" and not args.each):
        with _ended_by_mlx_launch():
            return command() if name == "eval" else _bench(args, command)
    if name not in SPLIT:
        return command()
    try:
        if is_follower():
            follow()
            return 0
        return _led(command)
    except BaseException as error:
        # At its end MLX would wait for what the others no longer compute.
        is_interrupt = isinstance(error, KeyboardInterrupt)
        atexit.register(os._exit, INTERRUPTED if is_interrupt else 1)
        if isinstance(error, RuntimeError) and str(error).startswith(LOST):
            raise EdgeError(ENDED) from None
        raise


def _led(command: Callable[[], int]) -> int:
    try:
        code = command()
    except EdgeError:  # between two passes: the others wait
        end()
        raise
    end()
    return code


def _bench(args: argparse.Namespace, command: Callable[[], int]) -> int:
    """Measures on rank 0; the others follow its workers, one after another."""
    rank = os.environ.pop(MLX_RANK, None)
    if rank is None:
        raise EdgeError("edge bench over several devices needs the ring or jaccl, not mpi.")
    if rank == "0":
        args.is_split = True
        code = command()
        _call(rank, "end")
        return code
    while (code := _call(rank)) == ANOTHER:
        pass
    return code


def _call(rank: str, *words: str) -> int:
    return subprocess.call((*FOLLOWER, *words), env=child_environment() | {MLX_RANK: rank})


@contextmanager
def _ended_by_mlx_launch() -> Iterator[None]:
    """SIGTERM, which mlx.launch sends when another process has ended, as rank 0's sentence."""
    is_first = os.environ.get(MLX_RANK) == "0"
    try:
        with stopped_by_sigterm():
            yield
    except SystemExit as stop:
        if stop.code != 128 + signal.SIGTERM:
            raise
        if is_first:
            raise EdgeError(ENDED) from None
        sys.exit(1)
