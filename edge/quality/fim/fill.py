"""Fill holes with artefacts, except those whose middles are stored."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edge.device.memory import wired
from edge.errors import EdgeError
from edge.generate import fim, fim_stop
from edge.generate.decode import LlamaSource, MlxSource
from edge.generate.fim import Completer
from edge.llama_cpp.session import LlamaSession
from edge.model.load import open_model
from edge.quality.fim.holes import Hole
from edge.quality.records import Records, Subject, identity
from edge.tokenizer import fim_tokens
from edge.tokenizer.fim_tokens import Order
from edge.tokenizer.tokenizer import Tokenizer

# Tokens of prompt and middle: about what editors send. Half of a short context, because most of
# the time of a sample is spent on its prompt.
WINDOW_TOKENS, WINDOW_SHARE = 2048, 1 / 2


@dataclass(frozen=True)
class Settings:
    """Settings for all artefacts; the window holds the prompt and the middle."""

    order: Order
    max_tokens: int
    window_tokens: int


def settings_for(context_tokens: int, order: Order, max_tokens: int) -> Settings:
    """Settings for a model's context length; an EdgeError if no prompt fits."""
    window = min(WINDOW_TOKENS, int(context_tokens * WINDOW_SHARE))
    if max_tokens > window // 2:
        raise EdgeError(
            f"--max-tokens {max_tokens} leaves too little room for a prompt in a window of "
            f"{window}; choose at most {window // 2}."
        )
    return Settings(order, max_tokens, window)


@dataclass(frozen=True)
class Filled:
    """The middle of a hole; `stopped_by` is that of `Completion`."""

    text: str
    stopped_by: str
    seconds: float


def rules_version() -> str:
    """Digest of the code of the prompt and the stop rules."""
    files = [Path(m.__file__ or "").read_bytes() for m in (fim, fim_stop, fim_tokens)]
    return hashlib.sha256(b"".join(files)).hexdigest()[:16]


def fill_all(
    subject: Subject,
    holes: Sequence[Hole],
    settings: Settings,
    tokenizer: Tokenizer,
    folder: Path,
    threads: int,
    progress: Callable[[float], None],
    warn: Callable[[str], None],
) -> list[Filled]:
    """Middles of all holes, in order; each is stored in `folder` as soon as it is computed.

    `warn` gets a sentence if memory is short.
    """
    key = {**identity(subject), "rules": rules_version(), **asdict(settings)}
    records: Records[Filled] = Records(folder, key, Filled)
    missing = [hole for hole in holes if hole.digest not in records]
    if missing:
        with _open_completer(
            subject, settings.window_tokens, tokenizer, threads, warn
        ) as completer:
            for done, hole in enumerate(missing, start=len(holes) - len(missing)):
                progress(done / len(holes))
                # Reusing the cache of another hole would change the rounding.
                completer.source.reset()
                made = completer.complete(
                    hole.prefix, hole.suffix, order=settings.order, max_tokens=settings.max_tokens
                )
                records.add(hole.digest, Filled(made.text, made.stopped_by, made.total_s))
    progress(1.0)
    return [records[hole.digest] for hole in holes]


@contextlib.contextmanager
def _open_completer(
    subject: Subject,
    window_tokens: int,
    tokenizer: Tokenizer,
    threads: int,
    warn: Callable[[str], None],
) -> Iterator[Completer]:
    if subject.is_mlx:
        model, _, need = open_model(subject.path, warn=warn)
        with wired(need.running_bytes):
            yield Completer(MlxSource(model, context_tokens=window_tokens), tokenizer)
        return
    with contextlib.closing(LlamaSession(subject.path, window_tokens, threads)) as session:
        yield Completer(LlamaSource(session, window_tokens), tokenizer)
