"""Processes of mlx.launch on this machine."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile

LAUNCH = Path(sys.executable).with_name("mlx.launch")
ROOT = Path(__file__).parents[2]


def free_port(count=1):
    """The first of `count` free ports in a row, below those that the system gives to others."""
    while True:
        first = random.SystemRandom().randrange(10_000, 30_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def pair(script, *words, count=2, limit_s=60.0):
    """What processes with mlx.launch's environment print as JSON, by rank; quicker than it."""
    with NamedTemporaryFile("w") as hostfile:
        first = free_port(count)
        json.dump([[f"127.0.0.1:{first + number}"] for number in range(count)], hostfile)
        hostfile.flush()
        common = {**os.environ, "PYTHONPATH": str(ROOT), "MLX_HOSTFILE": hostfile.name}
        processes = [
            subprocess.Popen(
                [sys.executable, Path(__file__).with_name(script), *map(str, words)],
                env={**common, "MLX_RANK": str(number)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]
        try:
            printed = [process.communicate(timeout=limit_s)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    assert [process.returncode for process in processes] == [0] * count
    return [json.loads(text) for text in printed]


def launch(*command, ranks=2, cwd=None, limit_s=60.0):
    """Runs python with a command on every rank: stdout and stderr of all together."""
    words = [LAUNCH, "-n", ranks, "-p", free_port(ranks), "--", sys.executable, *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        with subprocess.Popen(
            list(map(str, words)),
            stdin=subprocess.PIPE,  # mlx.launch reads a closed one without pause
            stdout=out,
            stderr=err,
            cwd=cwd,
            env=environment,
            start_new_session=True,
        ) as process:
            try:
                process.wait(limit_s)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        out.seek(0)
        err.seek(0)
        return out.read(), err.read()
