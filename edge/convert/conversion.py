"""Make artefacts: one pass over the tensors, then what needs a float artefact as input."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Event

from edge.convert.artefacts.gguf import GgufWriter, gguf_notes
from edge.convert.artefacts.imatrix import read_imatrix
from edge.convert.artefacts.layout import layout
from edge.convert.artefacts.learned import read_text, write_learned
from edge.convert.artefacts.manifest import (
    Manifest,
    file_sha256,
    gguf_sha256,
    read_manifest,
    tool_versions,
    write_manifest,
)
from edge.convert.artefacts.mlx import MlxWriter
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.artefacts.sizes import bits_per_weight, planned_bytes
from edge.convert.checkpoint import Checkpoint
from edge.convert.compare import describe_loss
from edge.convert.output_folder import check_room
from edge.convert.sources.companions import INDEX
from edge.convert.sources.hub import SMALL_FILES
from edge.convert.stream import stream
from edge.convert.targets import Options, Target
from edge.formats.files import PARTIAL, atomic_write, os_errors_as_edge_error, remove
from edge.llama_cpp.quantise import fallback_warning, quantise

# Told (artefact name, finished fraction 0 to 1).
Progress = Callable[[str, float], None]
Writer = MlxWriter | GgufWriter
FLOAT_MLX, FLOAT_GGUF = RECIPES["mlx-fp16"], RECIPES["gguf-f16"]


class Conversion:
    """One call's work, once it is known what is missing.

    Args:
        checkpoint: what to convert.
        missing: what to make of it.
        out: the folder, held alone.
        progress: told how far each artefact is.
        options: what the user chose.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        missing: Sequence[Target],
        out: Path,
        progress: Progress,
        options: Options,
    ) -> None:
        self._checkpoint, self._missing, self._out = checkpoint, missing, out
        self._progress, self._options = progress, options
        self._streamed = [t for t in missing if t.is_streamed]
        self._learned = [t for t in missing if t.learned]
        self._quantised = [t for t in missing if not t.recipe.is_mlx and not t.is_streamed]

    def run(self) -> None:
        """Make everything.

        Raises:
            EdgeError: the disk is too small, a weight does not fit, or writing failed.
        """
        with os_errors_as_edge_error(self._out):
            self._run()

    def _run(self) -> None:
        self._check_texts()
        temporary = self._temporary()
        made = [(t.recipe, t.exact) for t in (*self._missing, *temporary)]
        check_room(self._out, sum(planned_bytes(self._checkpoint, made)))
        stop = Event()
        with ThreadPoolExecutor(1) as background, _removed_afterwards(temporary):
            # While the tensors pass: another core has time, and the files are in its cache.
            self._sources = background.submit(_hash_sources, self._checkpoint, stop.is_set)
            try:
                self._stream([*self._streamed, *temporary], temporary)
                inputs = {t.recipe.name: t.path for t in temporary}
                for target in self._learned:
                    self._learn(target, inputs.get(FLOAT_MLX.name))
                for target in self._quantised:
                    self._quantise(target, inputs.get(FLOAT_GGUF.name))
            finally:
                stop.set()  # nobody waits for digests after Ctrl-C

    def _check_texts(self) -> None:
        """Read what the user names before hours of work depend on it."""
        if self._options.imatrix is not None:
            read_imatrix(self._options.imatrix)
        if self._options.calibration is not None:
            read_text(self._options.calibration)

    def _temporary(self) -> list[Target]:
        """The float artefacts that later steps read and nobody asked for or made before.

        They are named as partials, so that a kill leaves nothing for good.
        """
        needed = [(FLOAT_MLX, self._learned), (FLOAT_GGUF, self._quantised)]
        return [
            Target(recipe, self._out / f".{path.name}.{PARTIAL}-{os.getpid()}")
            for recipe, by in needed
            if by and not self._will_be_there(path := recipe.path_in(self._out))
        ]

    def _will_be_there(self, path: Path) -> bool:
        if any(target.path == path for target in self._streamed):
            return True
        manifest = read_manifest(path) if path.exists() else None
        return manifest is not None and manifest.fingerprint == self._checkpoint.fingerprint

    def _stream(self, wanted: Sequence[Target], temporary: Sequence[Target]) -> None:
        if not wanted:
            return
        with ExitStack() as stack:
            writers: list[tuple[Target, Path, Writer]] = []
            for target in wanted:
                whole = os_errors_as_edge_error if target in temporary else atomic_write
                partial = stack.enter_context(whole(target.path)) or target.path
                writer = self._writer(target, partial)
                stack.callback(writer.close)
                writers.append((target, partial, writer))
            stream(self._checkpoint, [w for *_, w in writers], self._progress_of(wanted))
            for target, partial, writer in writers:
                self._sign(target, partial, writer.finish(), writer.notes())

    def _writer(self, target: Target, partial: Path) -> Writer:
        if target.recipe.is_mlx:
            forms = layout(self._checkpoint, target.recipe, target.exact)
            return MlxWriter(self._checkpoint, target.recipe, forms, partial)
        return GgufWriter(self._checkpoint, target.recipe, partial)

    def _progress_of(self, wanted: Sequence[Target]) -> Callable[[float], None]:
        def update(done: float) -> None:
            for target in wanted:
                self._progress(target.recipe.name, done)

        return update

    def _quantise(self, target: Target, source: Path | None) -> None:
        source = source or FLOAT_GGUF.path_in(self._out)
        file_type = target.recipe.file_type
        assert file_type is not None  # every GGUF recipe has one
        with atomic_write(target.path) as partial:
            done = self._progress_of([target])
            quantise(source, partial, file_type, done, target.imatrix)
            warning = fallback_warning(partial, file_type)
            digests = {target.path.name: gguf_sha256(partial)}
            notes = [*gguf_notes(self._checkpoint), *([warning] if warning else [])]
            self._sign(target, partial, digests, notes)

    def _learn(self, target: Target, source: Path | None) -> None:
        source = source or FLOAT_MLX.path_in(self._out)
        with atomic_write(target.path) as partial:
            digests, notes = write_learned(
                self._checkpoint,
                target.recipe,
                source,
                self._options.calibration,
                partial,
                self._progress_of([target]),
            )
            self._sign(target, partial, digests, notes)

    def _sign(
        self, target: Target, partial: Path, digests: dict[str, str], notes: Sequence[str]
    ) -> None:
        """Put the manifest in, the last thing before the artefact takes its place."""
        checkpoint = self._checkpoint
        if checkpoint.weights.quantised and not target.exact and partial != target.path:
            notes = [*notes, describe_loss(partial, checkpoint)]
        manifest = Manifest(
            artefact=target.recipe.name,
            source=checkpoint.source.origin,
            revision=checkpoint.source.revision,
            synthetic=_is_synthetic(checkpoint),
            fingerprint=checkpoint.fingerprint,
            corrections=asdict(checkpoint.corrections),
            recipe=target.record(),
            exact=target.exact,
            bits_per_weight=bits_per_weight(partial, checkpoint.parameters),
            source_sha256=self._sources.result(),
            output_sha256=digests,
            tools=tool_versions(),
            notes=tuple(notes),
        )
        write_manifest(partial, manifest)


@contextmanager
def _removed_afterwards(temporary: Sequence[Target]) -> Iterator[None]:
    try:
        yield
    finally:
        for target in temporary:
            remove(target.path)


def _is_synthetic(checkpoint: Checkpoint) -> bool:
    """Random weights, or an artefact made of such."""
    path = checkpoint.source.path
    manifest = read_manifest(path) if path else None
    return path is None or (manifest is not None and manifest.synthetic)


def _hash_sources(checkpoint: Checkpoint, stopped: Callable[[], bool]) -> dict[str, str]:
    """Digests of every file that was read: the small ones, then the weights."""
    path = checkpoint.source.path
    small = [path / name for name in (*SMALL_FILES, INDEX)] if path else []
    files = [file for file in small if file.is_file()]
    files += checkpoint.weights.files
    return {file.name: file_sha256(file, stopped) for file in files}
