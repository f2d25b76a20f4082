"""One network over the processes of mlx.launch: rank 0 runs the program, the others follow it.

Before every pass rank 0 announces the length of the cache, the number of ids and the ids, as a sum
to which the others add zeros, so that ids which are still being computed need not be awaited. The
others run the same pass. Only rank 0 samples, and nothing is drawn twice.
"""

import hashlib
import json
import os
import select
import socket
import stat
import sys
import weakref
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx

from edge.distributed import Lost, group, host_name
from edge.errors import EdgeError
from edge.formats.files import DEMO_PATH
from edge.formats.folder import weight_files
from edge.model.kv_cache import make_cache
from edge.model.load import Loaded, open_model
from edge.model.shard import WHOLE, Part
from edge.model.stablelm import Backbone, Cache, Model

# An announcement has so many numbers: kind, batch, ids per sequence, length and bits of the cache;
# then ids, and where they are more than that, an array with the rest.
HEAD_NUMBERS, NUMBERS = 5, 64
# Exit code of this module's process where another worker of `edge bench` comes next.
ANOTHER = 75
BACKENDS = {"MLX_JACCL_COORDINATOR": "jaccl", "MLX_HOSTFILE": "ring", "NCCL_HOST_IP": "nccl"}
# `bits` of a pass: the cache of the pass before, none, or a new one that is not quantised.
SAME_CACHE, NO_CACHE, PLAIN_CACHE = 0, -1, 16
PASSES_BETWEEN_CLEARS = 256
SAMPLE_BYTES = 4096

_pending: list[mx.array] = []  # what rank 0 computes last


class Kind(IntEnum):
    """What rank 0 announces."""

    END = 0
    OPEN = 1
    PASS = 2
    HEAD = 3
    ANOTHER = 4


def is_launched() -> bool:
    """True for a process that mlx.launch started with others."""
    return group() is not None


def is_follower() -> bool:
    """True for every rank but the first."""
    return part_here().rank > 0


@cache
def part_here() -> Part:
    """The part of a network that this process computes; all of it in a plain run."""
    ranks = group()
    return WHOLE if ranks is None else Part(ranks.rank(), ranks.size())


def open_together(
    path: Path, kv_bits: int | None = None, warn: Callable[[str], None] = lambda _: None
) -> Loaded:
    """As `open_model`; under mlx.launch every rank holds its part, and rank 0 leads."""
    part = part_here()
    if part.size == 1:
        return open_model(path, kv_bits, warn)
    name = "demo" if path == DEMO_PATH else str(path)
    text = json.dumps({"path": name, "kv_bits": kv_bits, "sha256": fingerprint(path)})
    _announce(Kind.OPEN, mx.array([list(text.encode())]))
    loaded = open_model(path, kv_bits, warn, part)
    _lead(loaded.model)
    _meet()
    return loaded


def end(kind: Kind = Kind.END) -> None:
    """Ends the ranks that follow; rank 0 calls it last."""
    if part_here().size > 1:
        mx.eval(_pending)  # perhaps of another thread, whose sums must not mix with this one
        mx.eval(_announce(kind))


def backend() -> str:
    """Name of the backend of MLX that connects the ranks."""
    return next((name for key, name in BACKENDS.items() if key in os.environ), "mpi")


def follow() -> Kind:
    """Computes what rank 0 announces until it ends, which it returns.

    Raises an EdgeError where the model's files are not on this machine.
    """
    model: Model | None = None
    cache: list[Cache] | None = None
    hidden, passes = mx.zeros((1, 1, 1)), 0
    links = _links() if backend() == "ring" else []
    while True:
        _wait_for_news(links)
        kind, ids, length, bits = _receive()
        if kind in (Kind.END, Kind.ANOTHER):
            return kind
        if kind == Kind.OPEN:
            model = cache = None  # freed before the next is read
            model = _open(json.loads(bytes(ids[0].tolist())))  # type: ignore[arg-type]
            _meet()
            continue
        assert model is not None
        if kind == Kind.HEAD:
            mx.async_eval(model.head(hidden[:, -length:]))  # type: ignore[no-untyped-call]
            continue
        if bits != SAME_CACHE:
            cache = None if bits == NO_CACHE else make_cache(model, _kv_bits(bits))
        for layer in cache or ():
            layer.trim(layer.offset - length)
        hidden = model.model(ids, cache)
        mx.async_eval(hidden)  # type: ignore[no-untyped-call]
        passes += 1
        if ids.size > NUMBERS or passes % PASSES_BETWEEN_CLEARS == 0:
            mx.eval(hidden)
            mx.clear_cache()


def _links() -> list[socket.socket]:
    """The ring's connections, the only ones of a process that follows."""
    found = []
    for path in Path("/dev/fd").iterdir():
        number = int(path.name)
        with suppress(OSError):  # the folder's own, and one that is not connected
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                link = socket.socket(fileno=os.dup(number))
                link.getpeername()
                found.append(link)
    return [link for link in found if link.family in (socket.AF_INET, socket.AF_INET6)]


def _wait_for_news(links: Sequence[socket.socket]) -> None:
    """Waits until something arrives; MLX's ring would ask again and again, on a whole core.

    Raises Lost when a neighbour in the ring has ended, which MLX does not notice.
    """
    if not links:
        return
    for link in select.select(links, [], [])[0]:
        with suppress(BlockingIOError):  # MLX has read it meanwhile
            if not link.recv(1, socket.MSG_PEEK):
                raise Lost("another device has ended, so this one ends too.")


def _open(told: dict[str, object]) -> Model:
    path = DEMO_PATH if told["path"] == "demo" else Path(str(told["path"]))
    if not path.is_dir():
        raise EdgeError(
            f"{path} is not on this machine; every machine needs the artefact at the same path, so "
            f"convert or copy it there."
        )
    if fingerprint(path) != told["sha256"]:
        raise EdgeError(
            f"{path} is another model than on the first machine; copy it from there, or convert "
            f"the same checkpoint with the same edge."
        )
    kv_bits = told["kv_bits"]
    assert kv_bits is None or isinstance(kv_bits, int)
    return open_model(path, kv_bits, part=part_here()).model


def fingerprint(path: Path) -> str:
    """SHA-256 of a model's config, and of the sizes, headers and some weights of its files."""
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file_path in weight_files(path):
        size = file_path.stat().st_size
        with file_path.open("rb") as file:
            for place in range(0, size, max(size // 16, 1)):
                file.seek(place)
                digest.update(file.read(SAMPLE_BYTES))
        digest.update(f"{file_path.name} {size}".encode())
    return digest.hexdigest()


class _LeadingBackbone(Backbone):
    """Rank 0's layers; `known` refers to the first layer's cache that the others have, too."""

    known: Callable[[], Cache | None] = staticmethod(lambda: None)

    def __call__(self, ids: mx.array, cache: Sequence[Cache] | None) -> mx.array:
        length = 0 if cache is None else int(cache[0].offset)
        if cache is None:
            bits, self.known = NO_CACHE, lambda: None
        elif cache[0] is self.known():
            bits = SAME_CACHE
        elif length:
            raise RuntimeError("the other devices do not have this cache")
        else:
            bits, self.known = getattr(cache[0], "bits", PLAIN_CACHE), weakref.ref(cache[0])
        ids = _announce(Kind.PASS, ids, length, bits)
        hidden = super().__call__(ids, cache)
        # As the others do: what is evaluated on one device only would wait for them for ever.
        mx.async_eval(hidden)  # type: ignore[no-untyped-call]
        _pending[:] = [hidden]
        return hidden


class _LeadingModel(Model):
    def head(self, h: mx.array) -> mx.array:
        """The logits of the last positions of the last pass."""
        _announce(Kind.HEAD, length=h.shape[1])
        logits = super().head(h)
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        _pending[:] = [logits]
        return logits


def _lead(model: Model) -> None:
    """Makes a rank 0's network announce what it computes."""
    model.__class__, model.model.__class__ = _LeadingModel, _LeadingBackbone


def _kv_bits(bits: int) -> int | None:
    return None if bits == PLAIN_CACHE else bits


def _announce(kind: Kind, ids: mx.array | None = None, length: int = 0, bits: int = 0) -> mx.array:
    """Sends ids (B, L) with all that belongs to them; returns them."""
    batch, count = (0, 0) if ids is None else ids.shape
    numbers = [mx.array([int(kind), batch, count, length, bits], mx.int32)]
    if ids is not None:
        numbers.append(ids.astype(mx.int32).flatten())
    whole = mx.concatenate(numbers)
    sent = [_summed(_filled(whole[:NUMBERS]))]
    if whole.size > NUMBERS:
        sent.append(_summed(whole[NUMBERS:]))
    return mx.concatenate(sent)[HEAD_NUMBERS : HEAD_NUMBERS + batch * count].reshape(batch, count)


def _receive() -> tuple[Kind, mx.array, int, int]:
    """Kind, ids (B, L), length and bits of the next announcement."""
    sent = _summed(mx.zeros((NUMBERS,), mx.int32))
    head: Any = sent[:HEAD_NUMBERS].tolist()
    kind, batch, count, length, bits = head
    missing = HEAD_NUMBERS + batch * count - NUMBERS
    if missing > 0:
        sent = mx.concatenate([sent, _summed(mx.zeros((missing,), mx.int32))])
    ids = sent[HEAD_NUMBERS : HEAD_NUMBERS + batch * count].reshape(batch, count)
    return Kind(kind), ids, length, bits


def _filled(numbers: mx.array) -> mx.array:
    return mx.pad(numbers, (0, NUMBERS - numbers.size))


def _summed(numbers: mx.array) -> mx.array:
    """The sum over all ranks, at once: of two together MLX may take the second first.

    On the CPU, as a GPU that waits too long is reset.
    """
    part = part_here()
    part.sent_bytes += 2 * (part.size - 1) * numbers.nbytes // part.size
    found = mx.distributed.all_sum(numbers, stream=mx.cpu)
    mx.async_eval(found)  # type: ignore[no-untyped-call]
    return found


def _meet() -> None:
    """Waits for every rank, and counts their machines."""
    part, names = part_here(), [0] * part_here().size
    names[part.rank] = zlib.crc32(host_name().encode()) >> 1
    part.machines = len(set(_summed(mx.array(names, mx.int32)).tolist()))  # type: ignore[arg-type]


def main() -> int:
    """Follows one worker of `edge bench`, or ends with `end` all that follow."""
    try:
        if sys.argv[1:] == ["end"]:
            end()
            return 0
        return ANOTHER if follow() == Kind.ANOTHER else 0
    except Lost:  # the first machine does something else for longer than this waits
        return ANOTHER
    except EdgeError as error:
        print(f"edge bench on {host_name()}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
