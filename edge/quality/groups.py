"""Which artefacts are in memory together: as many as fit beside the reference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.device.memory import MemoryRoom
from edge.errors import EdgeError
from edge.model.config import ModelConfig
from edge.model.load import compute_dtype
from edge.model.memory import FORCE, HEADROOM_BYTES, required_bytes
from edge.quality.scorer import Pieces
from edge.quality.subject import Subject

# While a piece is compared: both distributions, a product of them, and logits that come in.
PIECES_COMPARED = 5
# llama.cpp's own logits, those of its graph, and our copy.
PIECES_IN_LLAMA_CPP = 3
CACHE_STEP, F16_BYTES = 256, 2


@dataclass(frozen=True)
class Groups:
    """Names in groups, the reference in none of them; what to say of memory, and how much."""

    groups: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    most_bytes: int


def make_groups(
    names: Sequence[str], needs: Mapping[str, int], reference: str | None, room: MemoryRoom
) -> Groups:
    """First come, first in; one alone at least.

    Args:
        names: to be computed, without the reference.
        needs: bytes of each, and of the reference.
        reference: in memory with every group; without one each artefact is alone.
        room: what memory there is.

    Raises:
        EdgeError: one does not fit, and EDGE_FORCE_MEMORY is not set.
    """
    base = 0 if reference is None else needs[reference]
    groups: list[list[str]] = []
    left = -1
    for name in names:
        if reference is None or needs[name] > left:
            groups.append([])
            left = room.bytes - base
        groups[-1].append(name)
        left -= needs[name]
    sizes = [base + sum(needs[name] for name in group) for group in groups or [[]]]
    notes = _doubts(groups, sizes, reference, room)
    return Groups(tuple(map(tuple, groups)), tuple(notes), max(sizes))


def need_bytes(subject: Subject, config: ModelConfig, window: int, pieces: Pieces) -> int:
    """What an artefact takes while it is scored, from its headers.

    Args:
        subject: the artefact.
        config: of its checkpoint.
        window: ids in a window.
        pieces: computed at a time.

    Raises:
        EdgeError: its headers cannot be read.
    """
    if subject.is_mlx:
        need = required_bytes(subject.path, config, compute_dtype(), window, None, pieces.positions)
        return need.total_bytes + (pieces.windows - 1) * need.working_bytes
    positions = -(-window // CACHE_STEP) * CACHE_STEP
    heads = config.num_hidden_layers * config.num_key_value_heads
    cache = 2 * F16_BYTES * heads * config.head_dim * positions
    piece = piece_bytes(config.vocab_size, pieces)
    return subject.path.stat().st_size + cache + PIECES_IN_LLAMA_CPP * piece + HEADROOM_BYTES


def piece_bytes(vocab_size: int, pieces: Pieces) -> int:
    """Logits of one piece."""
    return 4 * vocab_size * pieces.positions * pieces.windows


def _doubts(
    groups: Sequence[Sequence[str]], sizes: Sequence[int], reference: str | None, room: MemoryRoom
) -> list[str]:
    notes = []
    if reference is not None and len(groups) > 1:
        shown = "; ".join(" ".join(group) for group in groups)
        notes.append(
            f"the reference {reference} was computed {len(groups)} times, because only so many "
            f"artefacts fit into memory with it at once: {shown}"
        )
    worst = max(sizes)
    if worst > room.bytes:
        group = (groups or [[]])[list(sizes).index(worst)]
        notes.append(_shortage([*([reference] if reference else []), *group], worst, room))
    return notes


def _shortage(together: Sequence[str], size: int, room: MemoryRoom) -> str:
    """What to say where it may go well all the same.

    Raises:
        EdgeError: where it cannot.
    """
    said = (
        f"{' and '.join(together)} need {size / 1e9:.1f} GB together, and {room.bytes / 1e9:.1f} "
        f"GB of {room.what} are available"
    )
    if size > room.most_bytes and os.environ.get(FORCE, "0") in ("", "0"):
        raise EdgeError(
            f"{said}; close programs, choose a smaller --reference such as mlx-int8, a shorter "
            f"--window or --reference none, or set {FORCE}=1 to try all the same."
        )
    return said
