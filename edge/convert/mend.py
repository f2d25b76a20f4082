"""`--to gguf-mended`: somebody's GGUF file with what it lacks, as an artefact of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from edge.convert.artefacts.gguf_mend import mend
from edge.convert.artefacts.manifest import (
    GGUF_KEY,
    Manifest,
    blank_manifest,
    file_sha256,
    gguf_sha256,
    tool_versions,
    write_manifest,
)
from edge.convert.artefacts.recipes import MENDED
from edge.convert.artefacts.sizes import bits_per_weight
from edge.convert.checkpoint import Checkpoint, Corrections, open_checkpoint
from edge.convert.output_folder import check_room, lock_folder
from edge.convert.sources.gguf import has_rope_base
from edge.convert.sources.published import (
    STABLE_CODE_ROPE_THETA,
    doubts_about,
    rope_base_is_doubtful,
)
from edge.errors import EdgeError
from edge.formats.files import atomic_write


def mend_gguf(
    model: str,
    out: Path,
    rope_theta: float | None,
    force: bool,
    progress: Callable[[float], None],
    notice: Callable[[str], None],
    context: int | None = None,
) -> Path:
    """Write OUT/gguf-mended.gguf.

    Args:
        model: a GGUF file.
        out: the folder.
        rope_theta: the rotary base it was trained with, where it cannot be told.
        force: replace an older one.
        progress: told the finished fraction, 0 to 1.
        notice: told what the user should know meanwhile.
        context: the number of positions, where the file's is wrong.

    Raises:
        EdgeError: it is no GGUF file of a StableLM, lacks nothing, or its rotary base cannot
            be told; or the folder cannot be written.
    """
    source = Path(model).expanduser()
    if not source.is_file():
        raise EdgeError(f"{model} is no file; {MENDED.name} is made from a GGUF file.")
    base = rope_theta if rope_theta is not None else _rope_base(source)
    checkpoint = open_checkpoint(model, corrections=Corrections(rope_theta=base, context=context))
    for doubt in doubts_about(checkpoint.config, *checkpoint.names):
        notice(f"warning: {doubt}")
    target = MENDED.path_in(out)
    if target.exists() and target.samefile(source):
        raise EdgeError(f"{target} is the file to be mended itself; choose another --out.")
    with lock_folder(out, notice):
        if target.exists() and not force:
            raise EdgeError(f"{target} is there already; replace it with --force.")
        check_room(out, source.stat().st_size)
        with atomic_write(target) as partial:
            notes = {GGUF_KEY: blank_manifest()}
            mend(source, partial, base, progress, notes, context)
            write_manifest(partial, _manifest(checkpoint, source, target, partial))
    return target


def _rope_base(source: Path) -> float:
    """What the file says, or what Stable Code needs if it is that and says nothing."""
    checkpoint = open_checkpoint(str(source))
    if rope_base_is_doubtful(checkpoint.config, *checkpoint.names):
        return STABLE_CODE_ROPE_THETA
    if not has_rope_base(source):
        raise EdgeError(
            f"{source} does not say its rotary base and is not known to be Stable Code; give the "
            f"one it was trained with as --rope-theta (StableLM 3B: 10000)."
        )
    return checkpoint.config.rope_theta


def _manifest(checkpoint: Checkpoint, source: Path, target: Path, partial: Path) -> Manifest:
    return Manifest(
        artefact=MENDED.name,
        source=checkpoint.source.origin,
        revision=None,
        synthetic=False,
        fingerprint=checkpoint.fingerprint,
        corrections=asdict(checkpoint.corrections),
        recipe={},
        exact=True,
        bits_per_weight=bits_per_weight(partial, checkpoint.parameters),
        source_sha256={source.name: file_sha256(source)},
        output_sha256={target.name: gguf_sha256(partial)},
        tools=tool_versions(),
        notes=(
            f"rotary base {checkpoint.config.rope_theta:.0f}, context "
            f"{checkpoint.config.max_position_embeddings}; every tensor is the source's, byte for "
            f"byte.",
        ),
    )
