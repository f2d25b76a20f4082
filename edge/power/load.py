"""A load on a processor, which a meter must show: python -m edge.power.load CPU|GPU."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from subprocess import DEVNULL, Popen

from edge.child import module_command
from edge.device.describe import usable_cores

# A load ends by itself if nobody ends it.
LONGEST_S = 60.0
SIZE = 2048  # of a matrix: some milliseconds of a GPU


@contextmanager
def load_on(processors: Iterable[str]) -> Iterator[None]:
    """Keeps all usable cores busy, or the GPU, until the block ends."""
    count = {"CPU": usable_cores(), "GPU": 1}
    names = [name for name in processors for _ in range(count[name])]
    commands = [module_command("edge.power.load", name) for name in names]
    children = [Popen(c, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL) for c in commands]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def main(processor: str) -> None:
    end_s = time.monotonic() + LONGEST_S
    if processor == "GPU":
        import mlx.core as mx  # not in the children that load the CPU

        matrix = mx.ones((SIZE, SIZE))
        while time.monotonic() < end_s:
            mx.eval(matrix @ matrix)
    while time.monotonic() < end_s:
        pass


if __name__ == "__main__":
    main(sys.argv[1])
