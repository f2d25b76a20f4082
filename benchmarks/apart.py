"""What is timed, each in a process of its own.

mlx-lm runs with the BLAS that MLX comes with, edge with its own (edge/linux_cpu.py): one
process has one of them. The processes take turns, so at any time one of them computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context

from edge.linux_cpu import KEEP_BLAS, blas

# A round's measurements, by name.
Speeds = dict[str, float]
# Prepares in the process that will run it what every round then calls.
Make = Callable[[], Callable[[], Speeds]]


@contextmanager
def apart(makes: Mapping[str, Make], stock: set[str]) -> Iterator[dict[str, Callable[[], Speeds]]]:
    """Start a process for each: what to call for a round of it, by name.

    Args:
        makes: by name; pickled, so functions of a module and `partial`s of them.
        stock: the names of those that keep the BLAS that MLX comes with.
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
