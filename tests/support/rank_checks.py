"""What each process does for tests/test_distributed.py; it prints a line of JSON."""

import json
import os
import signal
import sys

from edge.distributed import (
    broadcast,
    check_same,
    gather,
    group,
    host_name,
    only_rank_0_prints,
    rank,
    ranks,
)
from edge.errors import EdgeError


def outcome(call):
    try:
        return call()
    except (EdgeError, SystemExit) as error:
        return str(error)


def check_everything():
    number = rank()
    large = bytes([number + 1]) * (number * 1_000_003)
    with only_rank_0_prints():
        print(f"said by {number}")
        print(f"warned by {number}", file=sys.stderr)
    found = {
        "rank": number,
        "ranks": ranks(),
        "same group": group() is group(),
        "children": "MLX_RANK" in os.environ,
        "gathered": [[len(d), sorted(set(d))] for d in gather(large)],
        "broadcast": broadcast(f"from {number}".encode()).decode(),
        "empty": [d.decode() for d in gather(b"")],
        "equal": outcome(lambda: check_same({"mlx": "1"})),
        "different": outcome(lambda: check_same({"mlx": "1", "model": f"v{number}"})),
        "host": host_name(),
    }
    pids = [int(d) for d in gather(str(os.getpid()).encode())]
    print(json.dumps(found), flush=True)
    if number == 1:  # silent, though its sockets are open
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    print(json.dumps({"silent": outcome(lambda: gather(b"", 0.2))}), flush=True)
    os.kill(pids[1], signal.SIGCONT)


def check_death():
    gather(b"")
    if rank() == 1:
        print(json.dumps("ended"), flush=True)
        os._exit(0)
    print(json.dumps(outcome(lambda: gather(b""))))


if __name__ == "__main__":
    check_death() if "death" in sys.argv else check_everything()
