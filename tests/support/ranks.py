"""Processes of mlx.launch on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile

LAUNCH = Path(sys.executable).with_name("mlx.launch")
ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def pair(script, *words, count=2, limit_s=60.0):
    """What processes with mlx.launch's environment print as JSON, by rank; quicker than it."""
    with NamedTemporaryFile("w") as hostfile:
        json.dump([[f"127.0.0.1:{free_port()}"] for _ in range(count)], hostfile)
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
    words = [LAUNCH, "-n", ranks, "-p", free_port(), "--", sys.executable, *command]
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
