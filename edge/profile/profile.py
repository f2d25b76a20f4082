"""The profile, schema 1: every row of one run on one device, raw trials included.

Unknown keys are ignored, as newer versions of edge may add some; fields with a default may be
missing in files of older versions.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from edge.device.describe import Bandwidth, Device
from edge.errors import EdgeError, printable
from edge.formats.files import atomic_write, read_small_file
from edge.profile.gate import Gate
from edge.profile.method import Method as Method
from edge.profile.ratio import Ratio
from edge.profile.trial import MOST, Count, Interval, NotNegative, Number, Process, Trial

SCHEMA: Literal[1] = 1
# A few hundred rows of some 200 kB.
MAX_BYTES = 200_000_000
Sentence = Annotated[str, Meta(min_length=1)]
Instant = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\+00:00|Z)$")]
Verdict = Literal["VALID", "WARN", "INVALID"]
Level = Literal["reason", "warning", "error"]

QUANTITIES = (
    *("decode_tok_s", "prefill_tok_s", "ttft_s", "power_w", "joules_per_token"),
    *("joules_per_token_net", "prefill_power_w", "prefill_joules_per_token"),
)
# Figures of a row that can be null, which a reason can be about.
ABOUT = (*QUANTITIES, "bandwidth_fraction", "peak_memory_bytes", "quality")
# Figures that are computed from others: the reason for a null may be about one of those.
FOLLOWS_FROM = {
    "ttft_s": ("prefill_tok_s",),
    "joules_per_token": ("power_w",),
    "joules_per_token_net": ("joules_per_token", "power_w"),
    "bandwidth_fraction": ("decode_tok_s",),
}
# Keys of the method, of rows and of engine_facts that are written only where they have a value.
RARE = (
    *("gate", "model", "arm", "baseline", "ratios", "source", "split"),
    *("in_turns", "until_percent", "vs_software", "fleet_number"),
)
# A framework's own engine; its other engines are peers.
OWN_ENGINES = {"MLX": "mlx", "GGUF": "llama.cpp"}
NO_REASON = "the profile does not say why"
# JSON strings contain no line break, so that only lists of numbers match.
NUMBER_LIST = re.compile(r"\[\n[\d\s,]+\]")


class Reason(Struct, frozen=True):
    """Why a figure is null (reason), doubtful (warning) or wrong (error).

    `about` is one of ABOUT, or empty for the whole row; `text` is a sentence without its full
    stop. Stored as "about: text", or as the text alone where it begins with the key.
    """

    about: str
    level: Level
    text: str

    def __str__(self) -> str:
        return self.text if self.text.startswith(self.about) else f"{self.about}: {self.text}"

    @classmethod
    def parse(cls, sentence: str) -> Reason:
        """Inverse of str; the level is lost. Older files list several keys before the colon."""
        head = sentence.partition(" ")[0]
        about = head.rstrip(":,")
        if about not in ABOUT:
            return cls("", "reason", sentence)
        text = sentence.partition(": ")[2] if head != about else sentence
        return cls(about, "reason", text or sentence)


class Workload(Struct, frozen=True):
    """llama-bench's tests: `prompt` tokens processed at once, `generate` tokens one by one.

    Each starts after `depth` tokens. With `joint`, its -pg, generation continues the prompt.
    `batch` sequences are computed at once, as in llama-batched-bench's -npl; the other numbers
    are those of one sequence.
    """

    prompt: Count = 0
    generate: Count = 0
    depth: Count = 0
    joint: bool = False
    batch: Annotated[int, Meta(ge=1, le=MOST)] = 1

    @property
    def context_tokens(self) -> int:
        """Positions the cache of a sequence must hold."""
        added = self.prompt + self.generate if self.joint else max(self.prompt, self.generate)
        return self.depth + added

    @property
    def decode_depth(self) -> int:
        """Positions in the cache when generation starts."""
        return self.depth + (self.prompt if self.joint else 0)

    @property
    def test(self) -> str:
        """Name without the depth: pp512, tg128; a joint one pp512+tg128; a batch ends in npl8."""
        tests = [f"{k}{n}" for k, n in (("pp", self.prompt), ("tg", self.generate)) if n]
        name = ("+" if self.joint else ", ").join(tests)
        return f"{name}, npl{self.batch}" if self.batch > 1 else name

    def __str__(self) -> str:
        """Name in llama-bench's notation: tg128 @ d4096."""
        return self.test + (f" @ d{self.depth}" if self.depth else "")


class Quantity(Struct, frozen=True, kw_only=True):
    """A measured quantity over n values.

    `sd` is the sample standard deviation, None for n = 1. `ci95` is Student's interval of the
    mean with the process as the unit, None for fewer than two processes.
    """

    median: Number
    mean: Number
    sd: NotNegative | None = None
    n: Annotated[int, Meta(ge=1, le=MOST)]
    ci95: Interval | None = None


class ModelInfo(Struct, frozen=True):
    """The measured model; `synthetic` means random weights.

    For rows of several models it is named "several models", and each row has its own.
    """

    name: str
    source: str = ""
    revision: str | None = None
    parameters: Count = 0
    synthetic: bool = False


class Split(Struct, frozen=True):
    """A model split over `devices` on so many `machines`, connected by a `backend` of MLX.

    Each device sends `sent_bytes_per_token` for a decode step.
    """

    devices: Count
    machines: Count
    backend: str
    sent_bytes_per_token: Count


class EngineFacts(Struct, frozen=True, kw_only=True):
    """The engine's settings for a row.

    `weight_bytes_per_token` are the bytes of weights that one decode step reads, `gpu_layers`
    llama.cpp's layers on a GPU, -1 for all.
    """

    device: str = ""
    compute_dtype: str | None = None
    kv_dtype: str | None = None
    threads: Count | None = None
    weight_bytes_per_token: Count | None = None
    kv_bytes_per_position: Count | None = None
    remarks: list[str] = []
    build: str | None = None
    gpu_layers: int | None = None
    split: Split | None = None


class QualityFigures(Struct, frozen=True, kw_only=True):
    """Perplexity of an artefact and the distance of its predictions from a reference's."""

    perplexity: NotNegative | None = None
    perplexity_se: NotNegative | None = None
    bits_per_byte: NotNegative | None = None
    perplexity_ratio: NotNegative | None = None
    perplexity_ratio_ci95: Interval | None = None
    kl_mean: NotNegative | None = None
    kl_mean_ci95: Interval | None = None
    kl_p99: NotNegative | None = None
    kl_max: NotNegative | None = None
    top1_agreement: Annotated[float, Meta(ge=0, le=1)] | None = None
    top1_agreement_ci95: Interval | None = None
    tokens: Count | None = None
    windows: Count | None = None


class Quality(QualityFigures, frozen=True, kw_only=True):
    """Distance of the artefact's predictions from those of `reference`.

    `kl_mean`, `kl_p99` and `kl_max` are nats per token, `top1_agreement` is the share of
    positions at which both predict the same token.
    """

    reference: str | None = None
    corpus: str | None = None
    corpus_sha256: str | None = None
    window: Count | None = None


def with_peer(name: str, engine: str, *marks: str | None) -> str:
    """A name with the engine, unless it is the framework's own, and what else marks a row."""
    others = [] if engine in OWN_ENGINES.values() else [engine]
    others += [mark for mark in marks if mark]
    return f"{name} ({', '.join(others)})" if others else name


class PowerSource(Struct, frozen=True):
    """The meter's name, what its joules include, and its warnings."""

    source: str
    boundary: str = ""
    flags: list[str] = []


class RowSummary(Struct, frozen=True, kw_only=True):
    """An artefact on an engine under a workload, without its trials.

    A quantity that is None has its reason in `reasons`. Decode, prefill and time to first
    token exclude loading, tokenising, sampling and detokenising. Rates of a batch are those of all
    its sequences together; the time to first token ends when all have theirs.
    `bytes_per_token` is what one decode step reads: weights, which a batch shares, and the cache
    at the middle of the window. `joules_per_token`
    is gross, `joules_per_token_net` net of idle power. `peak_memory_bytes` is the larger of the
    process's and the device's (`peak_device_bytes`). `model` is None if it is the profile's.
    `arm` names the environment of a row that another interpreter ran (--vs). `ratios` are by the
    quantity's name, relative to the row `baseline` of the same workload, or of another batch of it.
    `source` is another program that measured the row, None for edge itself. Where the model is
    `split`, bytes per token are those of all devices, the peak of memory that of the first.
    """

    artefact: str
    engine: str
    framework: str
    precision: str
    workload: Workload
    file_bytes: Count | None = None
    bits_per_weight: NotNegative | None = None
    bytes_per_token: Count | None = None
    decode_tok_s: Quantity | None = None
    prefill_tok_s: Quantity | None = None
    ttft_s: Quantity | None = None
    power_w: Quantity | None = None
    joules_per_token: Quantity | None = None
    joules_per_token_net: Quantity | None = None
    peak_memory_bytes: Count | None = None
    bandwidth_fraction: NotNegative | None = None
    quality: Quality | None = None
    verdict: Verdict
    reasons: list[Sentence]
    load_s: NotNegative | None = None
    engine_facts: EngineFacts | None = None
    prefill_power_w: Quantity | None = None
    prefill_joules_per_token: Quantity | None = None
    peak_device_bytes: Count | None = None
    token_latency_ms: dict[str, NotNegative] | None = None
    power: PowerSource | None = None
    gate: Gate | None = None
    model: ModelInfo | None = None
    arm: str | None = None
    baseline: str | None = None
    ratios: dict[str, Ratio] = {}
    source: str | None = None

    @property
    def counts(self) -> bool:
        return self.verdict != "INVALID"

    @property
    def step_bytes(self) -> int:
        """What a decode step reads, for all sequences of a batch; 0 if not known."""
        return (self.bytes_per_token or 0) * self.workload.batch

    def with_peer(self, name: str) -> str:
        marks = [f"{self.split.devices} devices"] if self.split else []
        return with_peer(name, self.engine, self.arm, self.source, *marks)

    def on_gpu(self, device: Device) -> bool:
        """True if the engine's device is the GPU: llama.cpp says GPU, MLX the GPU's name."""
        engine_device = self.engine_facts.device if self.engine_facts else ""
        return engine_device == "GPU" or bool(device.gpu_name and device.gpu_name in engine_device)

    def bandwidth(self, device: Device) -> Bandwidth | None:
        """Bandwidth of the memory that the weights were read from, of all machines together.

        They are taken for machines as this one.
        """
        found = device.memory_bandwidth
        if device.gpu_memory_bandwidth is not None and self.on_gpu(device):
            found = device.gpu_memory_bandwidth
        if found is None or self.machines == 1:
            return found
        return replace(found, gb_s=found.gb_s * self.machines)

    @property
    def split(self) -> Split | None:
        return self.engine_facts.split if self.engine_facts else None

    @property
    def machines(self) -> int:
        return self.split.machines if self.split else 1

    def why_not(self, *keys: str) -> str:
        """Reason for a null: one about a key, one that mentions it, or why the row failed."""
        reasons = [Reason.parse(reason) for reason in self.reasons]
        for name in [name for key in keys for name in (key, *FOLLOWS_FROM.get(key, ()))]:
            about = [reason for reason in reasons if reason.about == name]
            for reason in about or [r for r in reasons if name in r.text]:
                return reason.text
        return self.reasons[0] if self.reasons and not self.counts else NO_REASON


class Row(RowSummary, frozen=True, kw_only=True):
    """A row with its raw data; `processes` has one entry per round."""

    processes: list[Process] = []
    trials: list[Trial]

    @property
    def counted(self) -> list[Trial]:
        return [trial for trial in self.trials if not trial.warmup]


class Head(Struct, frozen=True, kw_only=True):
    """A profile's fields except its rows."""

    schema: Literal[1]
    created_utc: Instant
    argv: list[str] = []
    device: Device
    software: dict[str, str]
    model: ModelInfo
    method: Method


class Summary(Head, frozen=True, kw_only=True):
    """A profile without its trials."""

    rows: list[RowSummary]


class Profile(Head, frozen=True, kw_only=True):
    """A profile."""

    rows: list[Row]

    def to_json(self) -> str:
        """The file's content, lists of numbers on one line each; ValueError for NaN."""
        data = msgspec.to_builtins(self)
        facts = [row["engine_facts"] or {} for row in data["rows"]]
        for part in (data["method"], *data["rows"], *facts):
            for key in RARE:
                if not part.get(key, True):
                    del part[key]
        text = json.dumps(data, indent=1, allow_nan=False)
        return NUMBER_LIST.sub(lambda found: "".join(found[0].split()), text) + "\n"


class ProfileError(EdgeError):
    """A file that is not a profile; `reason` is the sentence without the file's name.

    `kind` is "unreadable", "not a profile", "newer schema" or "broken".
    """

    def __init__(self, path: Path, kind: str, reason: str) -> None:
        super().__init__(f"{path} {reason}.")
        self.kind, self.reason = kind, reason


HINT = "give a JSON file that `edge bench` wrote"
AnyProfile = TypeVar("AnyProfile", Profile, Summary)


class _Version(Struct):
    schema: Any = None


def read(path: Path) -> Profile:
    return decode(read_bytes(path), path, Profile)


def read_summary(path: Path) -> Summary:
    """Reads a profile without trials and processes, about ten times as fast."""
    return decode(read_bytes(path), path, Summary)


def write(profile: Profile, path: Path) -> None:
    with atomic_write(path) as partial:
        partial.write_text(profile.to_json(), encoding="utf-8")


def profiles_below(folder: Path, onerror: Callable[[OSError], None]) -> list[Path]:
    """Every *.json in and below a folder but hidden ones; links to folders are not followed.

    macOS writes a hidden `._NAME.json` beside every file of a foreign disk.
    """
    found = []
    for parent, folders, names in os.walk(folder, onerror=onerror):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() == ".json")


def read_bytes(path: Path) -> bytes:
    try:
        return read_small_file(path, MAX_BYTES)
    except EdgeError as error:
        reason = str(error).removeprefix(f"{printable(str(path))} ").removesuffix(".")
        raise ProfileError(path, "unreadable", reason) from None


def decode(data: bytes, path: Path, kind: type[AnyProfile]) -> AnyProfile:
    """A Profile or a Summary from a file's bytes; errors name the place of a wrong value."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as error:
        check_version(data, path)
        reason = f"is broken ({error}): measure again, or use another copy"
        raise ProfileError(path, "broken", reason) from None


def check_version(data: bytes, path: Path) -> None:
    """Raises a ProfileError unless the bytes are a JSON object of this schema."""
    try:
        schema = msgspec.json.decode(data, type=_Version).schema
    except msgspec.ValidationError:
        schema = None
    except (ValueError, RecursionError) as error:
        raise ProfileError(path, "not a profile", f"is not JSON ({error}): {HINT}") from None
    if type(schema) is not int or schema < 1:
        reason = f"is not a profile (it has no schema number): {HINT}"
        raise ProfileError(path, "not a profile", reason)
    if schema > SCHEMA:
        reason = f"has a newer schema than {SCHEMA}, which this edge reads: install a newer edge"
        raise ProfileError(path, "newer schema", reason)
