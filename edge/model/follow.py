"""One network over the processes of mlx.launch: rank 0 runs the program, the others follow it.

Before every pass rank 0 announces the length of the cache, the number of ids and the ids, as a sum
to which the others add zeros, so that ids which are still being computed need not be awaited. The
others run the same pass. Only rank 0 samples, and nothing is drawn twice.
"""

import hashlib
import json
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from enum import IntEnum
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from edge.errors import EdgeError
from edge.formats.files import DEMO_PATH
from edge.formats.folder import weight_files
from edge.model.kv_cache import make_cache
from edge.model.load import Loaded, open_model
from edge.model.shard import WHOLE, Part
from edge.model.stablelm import Backbone, Cache, Model

# An announcement has so many numbers: kind, batch, ids per sequence, length, bits and number of the
# cache (0 for none), and that of a cache which was deleted; then ids, and where they are more than
# that, an array with the rest.
HEAD_NUMBERS, NUMBERS = 7, 64
ENDED = "another device has ended, so this one ends too."
# Exit code of this module's process where another worker of `edge bench` comes next.
ANOTHER = 75
INTERRUPTED = 130
# How often a rank looks for the others, and how long it then has to end by itself.
LOOK_S, GRACE_S = 1.0, 2.0
# Environment variables of a process that mlx.launch or mpirun started.
RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK")
BACKENDS = {"MLX_JACCL_COORDINATOR": "jaccl", "MLX_HOSTFILE": "ring", "NCCL_HOST_IP": "nccl"}
PASSES_BETWEEN_CLEARS = 256
SAMPLE_BYTES = 4096

Opened = TypeVar("Opened")

_pending: list[mx.array] = []  # what rank 0 computes last
_new_numbers = count(1)
_numbers: MutableMapping[Cache, int] = weakref.WeakKeyDictionary()  # of caches
_deleted: list[int] = []  # caches that the others still hold
_links: dict[Any, int] = {}  # descriptors of the connections to other ranks


class Kind(IntEnum):
    """What rank 0 announces."""

    END = 0
    OPEN = 1
    PASS = 2
    HEAD = 3
    ANOTHER = 4


def is_launched() -> bool:
    """True for a process that mlx.launch started with others."""
    return part_here().size > 1


def is_follower() -> bool:
    """True for every rank but the first."""
    return part_here().rank > 0


@cache
def part_here() -> Part:
    """The part of a network that this process computes; all of it in a plain run.

    From the first call, in the main thread, this process ends with the others.
    """
    if not any(name in os.environ for name in RANKS):
        return WHOLE
    from edge.distributed import connections, group  # which import much

    ranks = group()
    if ranks is None:
        return WHOLE
    part = Part(ranks.rank(), ranks.size())
    _links.update(connections())
    _end_with_the_others(part)
    return part


def open_together(
    path: Path, kv_bits: int | None = None, warn: Callable[[str], None] = lambda _: None
) -> Loaded:
    """As `open_model`; under mlx.launch every rank holds its part, and rank 0 leads."""
    part = part_here()
    if part.size == 1:
        return open_model(path, kv_bits, warn)
    name = "demo" if path == DEMO_PATH else str(path)
    text = json.dumps({"path": name, "kv_bits": kv_bits, "sha256": fingerprint(path)})
    mx.eval(_announce(Kind.OPEN, mx.array([list(text.encode())])))
    loaded = _loaded_by_all(lambda: open_model(path, kv_bits, warn, part))
    loaded.model.__class__, loaded.model.model.__class__ = _LeadingModel, _LeadingBackbone
    return loaded


def end(kind: Kind = Kind.END) -> None:
    """Ends the ranks that follow; rank 0 calls it last."""
    if part_here().size > 1:
        _links.clear()  # the others may end first
        mx.eval(_pending)  # perhaps of another thread, whose sums must not mix with this one
        mx.eval(_announce(kind))


def backend() -> str:
    """Name of the backend of MLX that connects the ranks."""
    return next((name for key, name in BACKENDS.items() if key in os.environ), "mpi")


def follow() -> Kind:
    """Computes what rank 0 announces until it ends, which it returns."""
    model: Model | None = None
    caches: dict[int, list[Cache]] = {}
    hidden, passes = mx.zeros((1, 1, 1)), 0
    part_here()  # connects
    while True:
        if backend() == "ring":  # it asks again and again, on a whole core
            select.select(_links.values(), [], [])
        kind, ids, length, bits, number, deleted = _receive()
        caches.pop(deleted, None)
        if kind in (Kind.END, Kind.ANOTHER):
            return kind
        if kind == Kind.OPEN:
            model, caches = None, {}  # freed before the next is read
            told = json.loads(bytes(ids[0].tolist()))  # type: ignore[arg-type]
            with suppress(EdgeError):  # rank 0 raises it, too
                model = _loaded_by_all(partial(_open, told))
            continue
        assert model is not None
        if kind == Kind.HEAD:
            mx.async_eval(model.head(hidden[:, -length:]))  # type: ignore[no-untyped-call]
            continue
        if number and number not in caches:
            caches[number] = make_cache(model, bits or None)
        for layer in caches.get(number, ()):
            layer.trim(layer.offset - length)
        hidden = model.model(ids, caches.get(number))
        mx.async_eval(hidden)  # type: ignore[no-untyped-call]
        passes += 1
        if ids.size > NUMBERS or passes % PASSES_BETWEEN_CLEARS == 0:
            mx.eval(hidden)
            mx.clear_cache()


def _end_with_the_others(part: Part) -> None:
    """Watches for the end of others, SIGTERM, which mlx.launch sends after it, and Ctrl-C.

    A pass that waits for a device which has ended may never return, and Python handles no signal
    meanwhile: a thread reads them from a pipe.
    """
    if part.rank > 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)  # with a handler it is written to the pipe
    threading.Thread(target=_watch, args=(part, reader), daemon=True).start()


def _watch(part: Part, reader: int) -> None:
    from edge.distributed import connections

    code = 1
    while _links.keys() <= connections().keys():
        if not select.select([reader], [], [], LOOK_S)[0]:
            continue
        number = os.read(reader, 1)[0]
        if number == signal.SIGINT:
            code = INTERRUPTED
        if number in (signal.SIGINT, signal.SIGTERM):
            break
    if code == INTERRUPTED or part.rank > 0:
        time.sleep(GRACE_S)  # it may be about to end
    else:
        print(f"edge: {ENDED}", file=sys.stderr)
    os._exit(code)


def _loaded_by_all(load: Callable[[], Opened]) -> Opened:
    """What this rank loads; the same EdgeError on every rank if one of them cannot."""
    from edge.distributed import gather, host_name

    loaded, problem, host = None, "", host_name()
    try:
        loaded = load()
    except EdgeError as error:
        problem = str(error)
    told = [json.loads(text) for text in gather(json.dumps([host, problem]).encode())]
    part_here().machines = len({name for name, _ in told})
    for name, sentence in told:
        if sentence:
            raise EdgeError(sentence if name == told[0][0] else f"on {name}: {sentence}")
    assert loaded is not None
    return loaded


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
    """Rank 0's layers."""

    def __call__(self, ids: mx.array, cache: Sequence[Cache] | None) -> mx.array:
        number = length = bits = 0
        if cache is not None:
            number, length = _number_of(cache[0]), int(cache[0].offset)
            bits = getattr(cache[0], "bits", 0)
        ids = _announce(Kind.PASS, ids, length, bits, number)
        hidden = super().__call__(ids, cache)
        # As the others do: what is evaluated on one device only would wait for them for ever.
        mx.async_eval(hidden)  # type: ignore[no-untyped-call]
        _pending[:] = [hidden]
        return hidden


def _number_of(cache: Cache) -> int:
    """The number under which the others hold the same cache, until it is deleted here."""
    owner = getattr(cache, "owner", cache)
    if owner not in _numbers:
        number = next(_new_numbers)
        _numbers[owner] = number
        weakref.finalize(owner, _deleted.append, number)
    return _numbers[owner]


class _LeadingModel(Model):
    def head(self, h: mx.array) -> mx.array:
        """The logits of the last positions of the last pass."""
        _announce(Kind.HEAD, length=h.shape[1])
        logits = super().head(h)
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        _pending[:] = [logits]
        return logits


def _announce(
    kind: Kind, ids: mx.array | None = None, length: int = 0, bits: int = 0, number: int = 0
) -> mx.array:
    """Sends ids (B, L) with all that belongs to them; returns them."""
    batch, count = (0, 0) if ids is None else ids.shape
    deleted = _deleted.pop() if _deleted else 0
    head = [int(kind), batch, count, length, bits, number, deleted]
    numbers = [mx.array(head, mx.int32)]
    if ids is not None:
        numbers.append(ids.astype(mx.int32).flatten())
    whole = mx.concatenate(numbers)
    sent = [_summed(_filled(whole[:NUMBERS]))]
    if whole.size > NUMBERS:
        sent.append(_summed(whole[NUMBERS:]))
    return mx.concatenate(sent)[HEAD_NUMBERS : HEAD_NUMBERS + batch * count].reshape(batch, count)


def _receive() -> tuple[Kind, mx.array, int, int, int, int]:
    """The next announcement: its kind, ids (B, L), and the numbers about caches."""
    sent = _summed(mx.zeros((NUMBERS,), mx.int32))
    head: Any = sent[:HEAD_NUMBERS].tolist()
    kind, batch, count, *of_caches = head
    missing = HEAD_NUMBERS + batch * count - NUMBERS
    if missing > 0:
        sent = mx.concatenate([sent, _summed(mx.zeros((missing,), mx.int32))])
    ids = sent[HEAD_NUMBERS : HEAD_NUMBERS + batch * count].reshape(batch, count)
    return Kind(kind), ids, *of_caches


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


def main() -> int:
    """Follows one worker of `edge bench`, or ends with `end` all that follow."""
    from edge.distributed import Lost, host_name

    try:
        if sys.argv[1:] == ["end"]:
            end()
            return 0
        return ANOTHER if follow() == Kind.ANOTHER else 0
    except EdgeError as error:
        if isinstance(error, Lost):  # rank 0 does something else for longer than this waits
            return ANOTHER
        print(f"edge bench on {host_name()}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
