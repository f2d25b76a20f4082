"""Conversion of one checkpoint to its artefacts; the source is read once for all of them."""

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Event

import edge
from edge.convert.artefacts.content import contradiction
from edge.convert.artefacts.gguf import GgufWriter, check_expressible, gguf_notes
from edge.convert.artefacts.manifest import (
    TOOLS,
    Manifest,
    gguf_sha256,
    read_manifest,
    write_manifest,
)
from edge.convert.artefacts.mlx import MlxWriter
from edge.convert.artefacts.recipes import RECIPES, Recipe
from edge.convert.checkpoint import Checkpoint
from edge.convert.stream import Writer, stream
from edge.convert.targets import Options, Target, bits_per_weight, planned_bytes, targets
from edge.convert.verify import describe_loss, hash_sources
from edge.errors import EdgeError
from edge.formats.files import (
    OLD,
    PARTIAL,
    atomic_write,
    check_free,
    check_writable,
    os_errors_as_edge_error,
    read_json_object,
    read_text,
    remove,
)
from edge.llama_cpp.quantise import fallback_warning, quantise, read_imatrix

# Takes an artefact's name and its finished fraction, 0 to 1.
Progress = Callable[[str, float], None]
Notice = Callable[[str], None]
# What a killed process leaves; nothing else is deleted.
LEFTOVER = re.compile(rf"\.((?:mlx|gguf)-[\w.]+)\.({PARTIAL}|{OLD})-\d+")
SPARE_BYTES = 64 << 20  # left free on the disk


@dataclass(frozen=True)
class Artefact:
    """A finished artefact."""

    recipe: Recipe
    path: Path
    kept: bool  # it existed before
    notes: tuple[str, ...] = ()  # sentences of its manifest on what was lost or changed


def convert(
    checkpoint: Checkpoint,
    recipes: Sequence[Recipe],
    out: Path,
    progress: Progress,
    options: Options | None = None,
    notice: Notice = lambda _: None,
) -> list[Artefact]:
    """Make the artefacts that are missing in the folder `out`.

    An EdgeError if another artefact is in the way, the disk is too small, a recipe cannot be made
    of this checkpoint, or writing fails.
    """
    options = options or Options()
    wanted = targets(checkpoint, recipes, out, options)
    if not all(target.recipe.is_mlx for target in wanted):
        check_expressible(checkpoint)
    for target in wanted:
        check_is_not_source(target.path, checkpoint)
    with lock_folder(out, notice):
        missing = [t for t in wanted if options.force or not _is_there(t, checkpoint, notice)]
        if missing:
            with os_errors_as_edge_error(out):
                _Conversion(checkpoint, out, progress, options).run(missing)
    return [finished(t.recipe, t.path, kept=t not in missing) for t in wanted]


def check_is_not_source(path: Path, checkpoint: Checkpoint) -> None:
    """Raise EdgeError where an artefact would replace what it is made from."""
    source = checkpoint.source.path
    if source is not None and path.exists() and path.samefile(source):
        raise EdgeError(f"{path} is the source itself; choose another --out.")


def finished(recipe: Recipe, path: Path, kept: bool) -> Artefact:
    """An artefact with the notes of its manifest."""
    manifest = read_manifest(path)
    return Artefact(recipe, path, kept, manifest.notes if manifest else ())


def _is_there(target: Target, checkpoint: Checkpoint, notice: Notice) -> bool:
    """True if the target exists; one that is damaged or of another recipe is made again."""
    if not target.path.exists():
        return False
    found = read_manifest(target.path)
    if found is None:
        reason = "is not a complete artefact of edge"
    elif found.fingerprint != checkpoint.fingerprint:
        reason = "was made from another checkpoint"
    elif fault := _fault(target.path, target.recipe, found):
        notice(f"{fault}; it is made again.")
        return False
    elif target.chosen and (found.recipe, found.exact) != (target.record(), target.exact):
        reason = "was made with other options"
    else:
        return True
    raise EdgeError(
        f"{target.path} {reason}; replace it with 'edge convert MODEL --to {target.recipe.name} "
        f"--force', or choose another --out."
    )


def _fault(path: Path, recipe: Recipe, manifest: Manifest) -> str | None:
    """Reason why an existing artefact cannot be kept, by headers and small files."""
    try:
        for name in manifest.output_sha256 if path.is_dir() else ():
            if name.endswith(".json"):
                read_json_object(path / name)
        return contradiction(path, recipe, manifest)
    except EdgeError:
        return f"{path} is damaged"


@dataclass
class _Conversion:
    """One pass over the tensors, then the artefacts that are made from a float artefact."""

    checkpoint: Checkpoint
    out: Path
    progress: Progress
    options: Options

    def __post_init__(self) -> None:
        # Temporary float artefacts; by this name the next run deletes it after a kill.
        self._floats = self.out / f".mlx-floats.{PARTIAL}-{os.getpid()}"

    def run(self, missing: Sequence[Target]) -> None:
        """Make every target; hash the source's files meanwhile."""
        # Before hours of work depend on them.
        if self.options.imatrix is not None:
            read_imatrix(self.options.imatrix)
        if self.options.calibration is not None:
            read_text(self.options.calibration)
        streamed = [target for target in missing if target.is_streamed]
        later = [target for target in missing if not target.is_streamed]
        floats = self._needed_floats(streamed, later)
        sizes = [planned_bytes(self.checkpoint, t.recipe, t.exact) for t in (*missing, *floats)]
        check_room(self.out, sum(sizes))
        stop = Event()
        with ThreadPoolExecutor(1) as background:
            # While the tensors pass, on another core: the files are in the system's cache.
            self._sources = background.submit(hash_sources, self.checkpoint, stop.is_set)
            try:
                if streamed or floats:
                    self._stream([*streamed, *floats])
                for target in later:
                    self._make_from_float(target)
            finally:
                stop.set()  # Ctrl-C must not wait for digests
                remove(self._floats)

    def _needed_floats(self, streamed: Sequence[Target], later: Sequence[Target]) -> list[Target]:
        """The float artefacts that later steps read, if neither present nor asked for."""
        there = {target.recipe for target in streamed}
        needed = []
        for recipe in {float_of(target): None for target in later}:
            path = recipe.path_in(self.out)
            found = read_manifest(path)
            usable = found is not None and (
                found.fingerprint == self.checkpoint.fingerprint and not _fault(path, recipe, found)
            )
            if recipe not in there and not usable:
                needed.append(Target(recipe, recipe.path_in(self._floats)))
        return needed

    def _stream(self, wanted: Sequence[Target]) -> None:
        with ExitStack() as stack:
            writers: list[tuple[Target, Path, Writer]] = []
            for target in wanted:
                path = stack.enter_context(atomic_write(target.path))
                writer: Writer = (
                    MlxWriter(self.checkpoint, target.recipe, target.exact, path)
                    if target.recipe.is_mlx
                    else GgufWriter(self.checkpoint, target.recipe, path)
                )
                stack.callback(writer.close)
                writers.append((target, path, writer))

            def update(done: float) -> None:
                for target in wanted:
                    self.progress(target.recipe.name, done)

            stream(self.checkpoint, [writer for *_, writer in writers], update)
            for target, path, writer in writers:
                self._sign(target, path, *writer.finish())

    def _make_from_float(self, target: Target) -> None:
        source = float_of(target).path_in(self._floats)
        if not source.exists():
            source = float_of(target).path_in(self.out)
        checkpoint, recipe = self.checkpoint, target.recipe
        progress = partial(self.progress, recipe.name)
        with atomic_write(target.path) as path:
            if target.learned:
                # Imported here: it needs mlx-lm and transformers.
                from edge.convert.artefacts.learned import write_learned

                text = self.options.calibration
                made = write_learned(checkpoint, recipe, source, text, path, progress)
            else:
                assert recipe.file_type is not None  # every GGUF recipe has one
                quantise(source, path, recipe.file_type, progress, target.imatrix)
                warning = fallback_warning(path, recipe.file_type)
                notes = [*gguf_notes(checkpoint), *([warning] if warning else [])]
                made = {target.path.name: gguf_sha256(path)}, notes
            self._sign(target, path, *made)

    def _sign(
        self, target: Target, path: Path, digests: dict[str, str], notes: Sequence[str]
    ) -> None:
        """Add the manifest, as the last step before the artefact takes its place."""
        if self.checkpoint.weights.quantised and not target.exact:
            notes = [*notes, describe_loss(path, self.checkpoint)]
        sources = self._sources.result()
        manifest = make_manifest(self.checkpoint, target.recipe, path, sources, digests, notes)
        manifest = replace(manifest, recipe=target.record(), exact=target.exact)
        write_manifest(path, manifest)


def float_of(target: Target) -> Recipe:
    """The float artefact that a target is made from."""
    return RECIPES["mlx-fp16" if target.learned else "gguf-f16"]


def make_manifest(
    checkpoint: Checkpoint,
    recipe: Recipe,
    artefact: Path,
    source_sha256: dict[str, str],
    output_sha256: dict[str, str],
    notes: Sequence[str],
) -> Manifest:
    """The manifest of an artefact that keeps the source's values."""
    return Manifest(
        artefact=recipe.name,
        source=checkpoint.source.origin,
        revision=checkpoint.source.revision,
        synthetic=is_synthetic(checkpoint),
        fingerprint=checkpoint.fingerprint,
        corrections=checkpoint.corrections,
        recipe={},
        exact=True,
        bits_per_weight=bits_per_weight(artefact, checkpoint.parameters),
        source_sha256=source_sha256,
        output_sha256=output_sha256,
        tools={"edge": edge.__version__} | {name: version(name) for name in TOOLS},
        notes=tuple(notes),
    )


def is_synthetic(checkpoint: Checkpoint) -> bool:
    """True for random weights and for artefacts made of them."""
    path = checkpoint.source.path
    manifest = read_manifest(path) if path else None
    return path is None or (manifest is not None and manifest.synthetic)


@contextmanager
def lock_folder(out: Path, notice: Notice) -> Iterator[None]:
    """Make the folder and lock it; the lock ends with the process, however it ends.

    `notice` is told of waiting. An EdgeError if the folder cannot be made, written or locked.
    """
    new_folders = [folder for folder in (out, *out.parents) if not folder.exists()]
    check_writable(out)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        with os_errors_as_edge_error(out):  # some network volumes of macOS have no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                notice(f"another process is converting to {out}; waiting for it to finish.")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        _clear_leftovers(out)
        yield
    finally:
        with suppress(OSError):  # a folder that is not empty
            for folder in new_folders:
                folder.rmdir()
        os.close(descriptor)


def _clear_leftovers(out: Path) -> None:
    """Delete what a killed process left, or put it back; needs the lock."""
    for path in out.iterdir():
        if match := LEFTOVER.fullmatch(path.name):
            target = out / match[1]
            if match[2] == OLD and not target.exists():
                path.rename(target)  # killed between the two renames of a replacement
            else:
                remove(path)


def check_room(out: Path, needed_bytes: int) -> None:
    """Raise EdgeError if the disk is too small for what will be written."""
    what = f"the conversion, with {SPARE_BYTES / 1e6:.0f} MB to spare,"
    advice = "free some, ask for fewer artefacts, or choose another --out"
    check_free(out, needed_bytes + SPARE_BYTES, what, advice)
