"""Readers of other programs' results: llama-bench's JSON and mlx_lm.benchmark's text.

Both are untrusted, and leave out much: None and "" mean that a file does not say it.
"""

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from edge.errors import EdgeError, printable
from edge.formats.files import decode_text, strict_json
from edge.profile.profile import EngineFacts, ModelInfo, ProfileError, Reason, Row, Workload
from edge.profile.trial import Above0, Count, Trial
from edge.profile.verdict import MIN_WINDOW_S, warning
from edge.text import plain

LLAMA_BENCH, MLX_LM_BENCHMARK = "llama-bench", "mlx_lm.benchmark"
NOT_STATED = "not stated"
# Bounds of a file: tests, and repetitions of each.
MOST = 2000
# Precisions at the end of file and folder names.
ENDING = re.compile(
    r"(?:[-_.](?:\d+-?bits?|mlx|gguf|int\d|fp?\d+|bf16|i?q\d\w*|(?:mx|nv)fp\d))+$", re.IGNORECASE
)
MLX_ENDING = re.compile(r"[-_.](?:(\d)-?bits?|int(\d)|(bf16|fp16))$", re.IGNORECASE)
SPLIT = re.compile(r"-\d{5}-of-\d{5}$")
# llama.cpp's description of a model is "stablelm 3B Q5_K - Medium".
FILE_TYPE = re.compile(r" ([IT]?Q\d\w*|B?F\d\d|\w{2}FP4)(?: - ([SML])[a-z]+)?(?= |$)")
PRECISIONS = {"F16": "FP16", "F32": "FP32", "Q2_K_M": "Q2_K"}
# Architectures and sizes of models of which a token reads the weights of some experts only.
EXPERTS = re.compile(r"moe|\dx\d|\bA\d|deepseek|grok|dbrx|arctic|gpt-oss|kimi|minimax", re.I)
APPLE_CHIP = re.compile(r"Apple M\d+(?: (?:Pro|Max|Ultra))?")
# Keys of a test that are not settings.
NO_SETTING = re.compile(r"n_(prompt|gen|depth)|model_|test_time|build_number|(avg|stddev|samples)_")
# The rates of llama-bench are rounded to six digits.
ROUNDED, ROUNDED_TEXT = 1e-4, 0.0011
TIMING = re.compile(r"prompt_tokens=(\d{1,9}), generation_tokens=(\d{1,9}), batch_size=(\d{1,9})\.")
NUMBER = r"(\d{1,12}\.\d{3})"
FIGURES = re.compile(
    rf"(?m)^(Trial|Averages)\b.*:\s+prompt_tps={NUMBER}, generation_tps={NUMBER}, "
    rf"peak_memory={NUMBER}"
)


@dataclass(frozen=True)
class Result:
    """A row as its file has it, not judged yet; `reasons` are doubts about the file itself.

    `weight_bytes` are those of all weights; None if unknown, or if a token reads a part of them.
    """

    row: Row
    model: ModelInfo
    reasons: list[Reason]
    chip: str = ""
    gpu: str = ""
    weight_bytes: int | None = None
    time: str = ""


def read_results(data: bytes, path: Path, model: str | None) -> list[Result] | None:
    """The results in a file of either program; None for any other file.

    `model` is a name for the model instead of the file's.
    """
    try:
        if b'"samples_ts"' in data:
            return [*_llama_bench(data, path, model)]
        if b"generation_tps=" in data and not data.lstrip().startswith((b"{", b"[")):
            return [*_mlx_lm_benchmark(data, path, model)]
    except EdgeError as error:
        reason = str(error).removeprefix(f"{printable(str(path))} ").removesuffix(".")
        raise ProfileError(path, "broken", reason) from None
    return None


class _Test(Struct, frozen=True):
    """One test of llama-bench: of a prompt, of generation, or with -pg of both together."""

    n_prompt: Count
    n_gen: Count
    samples_ts: Annotated[list[Above0], Meta(min_length=1, max_length=MOST)]
    samples_ns: list[Above0] = []
    n_depth: Count | None = None
    model_filename: str = ""
    model_type: str = ""
    model_size: Count = 0
    model_n_params: Count = 0
    cpu_info: str = ""
    gpu_info: str = ""
    build_commit: str = ""
    test_time: str = ""
    n_gpu_layers: Annotated[int, Meta(ge=-1, le=MOST)] | None = None
    n_threads: Count | None = None
    type_k: str = ""
    type_v: str = ""


def _llama_bench(data: bytes, path: Path, model: str | None) -> Iterator[Result]:
    """A result per model, settings and depth; a repeated test is another round of its row."""
    objects = _objects(data, path)
    settings = [{k: str(v) for k, v in o.items() if not NO_SETTING.match(k)} for o in objects]
    varied = {k for one in settings for k in one if len({o.get(k) for o in settings}) > 1}
    varied -= {"cpu_info", "gpu_info", "backends"}
    found: dict[tuple[Any, ...], dict[tuple[int, int], list[_Test]]] = {}
    for number, (raw, own) in enumerate(zip(objects, settings, strict=True), 1):
        try:
            test = msgspec.convert(raw, _Test)
        except (msgspec.ValidationError, OverflowError) as error:
            raise EdgeError(f"{path} is broken in test {number} ({error}).") from None
        label = ", ".join(f"{key}={own.get(key, '?')}" for key in sorted(varied))
        place = (test.cpu_info, test.gpu_info, test.model_filename, test.model_type)
        tests = found.setdefault((*place, test.n_depth, label), {})
        tests.setdefault((test.n_prompt, test.n_gen), []).append(test)
    for (*_, label), tests in found.items():
        prompts = [same for (_, generate), same in tests.items() if not generate]
        decodes = [same for (prompt, _), same in tests.items() if not prompt]
        joint = [same for (prompt, generate), same in tests.items() if prompt and generate]
        if len(prompts) == len(decodes) == 1:  # else there is no telling which belong together
            yield _llama_result(prompts[0], decodes[0], label, model)
        else:
            yield from (_llama_result(same, [], label, model) for same in prompts)
            yield from (_llama_result([], same, label, model) for same in decodes)
        yield from (_llama_result([], same, label, model) for same in joint)


def _objects(data: bytes, path: Path) -> list[dict[str, Any]]:
    """The objects of -o json, an array, or of -o jsonl, one per line."""
    try:
        is_array = data.lstrip().startswith(b"[")
        parts = [data] if is_array else [line for line in data.splitlines() if line.strip()]
        parsed = [value for part in parts[: MOST + 1] for value in _listed(strict_json(part))]
    except ValueError as error:
        raise EdgeError(
            f"{path} is not JSON ({error}); give the whole output of llama-bench -o json or jsonl."
        ) from None
    if len(parsed) > MOST or not all(isinstance(value, dict) for value in parsed):
        raise EdgeError(f"{path} is not a list of up to {MOST} tests of llama-bench.")
    return parsed


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _llama_result(
    prompts: Sequence[_Test], others: Sequence[_Test], label: str, model: str | None
) -> Result:
    tests = [*prompts, *others]
    first = tests[0]
    is_joint = bool(others and others[0].n_prompt)
    prompt_tokens, generated = max(t.n_prompt for t in tests), max(t.n_gen for t in tests)
    found = FILE_TYPE.search(first.model_type)
    precision = f"{found[1]}_{found[2]}" if found and found[2] else found[1] if found else ""
    precision = PRECISIONS.get(precision, precision) or NOT_STATED
    artefact = f"gguf-{precision.replace('FP', 'F').lower()}" if found else "gguf"
    is_whole = first.model_size and not EXPERTS.search(first.model_type)
    decode = [] if is_joint else [test.samples_ts for test in others]
    row = Row(
        artefact=plain(f"{artefact} ({label})" if label else artefact, 200),
        engine="llama.cpp",
        framework="GGUF",
        precision=plain(precision),
        workload=Workload(prompt_tokens, generated, first.n_depth or 0, is_joint),
        bits_per_weight=8 * first.model_size / (first.model_n_params or math.inf) or None,
        verdict="VALID",
        reasons=[],
        engine_facts=EngineFacts(
            device="GPU" if first.gpu_info and first.n_gpu_layers != 0 else "CPU",
            kv_dtype=plain(first.type_k if first.type_k == first.type_v else "") or None,
            threads=first.n_threads,
            build=plain(first.build_commit) or None,
            gpu_layers=first.n_gpu_layers,
        ),
        source=LLAMA_BENCH,
        trials=_trials([test.samples_ts for test in prompts], decode, prompt_tokens),
    )
    name = plain(model or _file_model(first.model_filename)) or NOT_STATED
    file = plain(re.split(r"[/\\]", first.model_filename)[-1])
    return Result(
        row,
        ModelInfo(name, file, parameters=first.model_n_params),
        [*_llama_doubts(tests, is_joint)],
        chip=_chip(first),
        gpu=plain(first.gpu_info),
        weight_bytes=first.model_size if is_whole else None,
        time=first.test_time,
    )


def _chip(test: _Test) -> str:
    """Apple's name of the chip, which both descriptions contain, or the CPU's."""
    found = APPLE_CHIP.search(f"{test.gpu_info}\n{test.cpu_info}")
    return found[0] if found else plain(test.cpu_info)


def _file_model(name: str) -> str:
    """The model that a path is named after: a file by itself, or our models/NAME/gguf-q6_k.gguf."""
    *folders, file = re.split(r"[/\\]", name)
    stem = ENDING.sub("", SPLIT.sub("", re.sub(r"\.gguf$", "", file, flags=re.I)))
    return folders[-1] if folders and stem.lower() in ("gguf", "model", "ggml-model") else stem


def _llama_doubts(tests: Sequence[_Test], is_joint: bool) -> Iterator[Reason]:
    if is_joint:
        text = "llama-bench -pg has one rate for prompt and generation together: use -p and -n"
        yield Reason("", "error", text)
    for test in tests:
        yield from _contradictions(test)
    if tests[0].n_depth is None:
        yield warning(
            "the context length is missing (n_depth): it was taken as 0, as in versions of "
            "llama-bench without -d; measure with a newer one"
        )
    shortest_s = min((ns / 1e9 for test in tests for ns in test.samples_ns), default=MIN_WINDOW_S)
    if shortest_s < MIN_WINDOW_S:
        yield warning(f"a repetition takes {shortest_s:.2g} s, too short to quote: raise -p and -n")


def _contradictions(test: _Test) -> Iterator[Reason]:
    tokens, rates, times_ns = test.n_prompt + test.n_gen, test.samples_ts, test.samples_ns
    if len(rates) != len(times_ns):
        yield warning("samples_ns is missing or incomplete, so that the rates cannot be checked")
        return
    for rate, ns in zip(rates, times_ns, strict=True):
        ratio = rate * ns / 1e9 / tokens if tokens else 0.0
        if abs(ratio - 1) > ROUNDED:
            is_off_by_one = tokens and abs(ratio - (tokens + 1) / tokens) < ROUNDED
            how = ", as rates of n + 1 tokens in the time of n" if is_off_by_one else ""
            text = f"a rate is {ratio:.4g} times n / time{how}: measure with llama-bench itself"
            yield Reason("", "error", text)
            return


def _trials(
    prefill: Sequence[Sequence[float]], decode: Sequence[Sequence[float]], prompt_tokens: int
) -> list[Trial]:
    """Trials of rates by round and repetition."""
    return [
        Trial(
            repetition=repetition,
            round=number,
            warmup=False,
            prompt_tokens=prompt_tokens,
            prefill_tok_s=before or None,
            decode_tok_s=after or None,
        )
        for number, pair in enumerate(zip_longest(prefill, decode, fillvalue=()))
        for repetition, (before, after) in enumerate(zip_longest(*pair))
    ]


Run = tuple[list[tuple[float, ...]], list[tuple[float, ...]]]  # trials, averages


def _mlx_lm_benchmark(data: bytes, path: Path, model: str | None) -> Iterator[Result]:
    """A result per number of tokens; a repeated run is another round of its row."""
    before, *parts = TIMING.split(decode_text(data, str(path)))
    runs: dict[tuple[int, ...], list[Run]] = {(): [_run(before)]}
    for place in range(0, len(parts), 4):  # three numbers of tokens and the lines behind them
        tokens = tuple(map(int, parts[place : place + 3]))
        runs.setdefault(tokens, []).append(_run(parts[place + 3]))
    for tokens, same in runs.items():
        if with_trials := [run for run in same if run[0]]:
            yield _mlx_result(tokens, with_trials, model)


def _run(text: str) -> Run:
    found = [(line[1], tuple(map(float, line.groups()[1:]))) for line in FIGURES.finditer(text)]
    trials = [figures for kind, figures in found[:MOST] if kind == "Trial"]
    return trials, [figures for kind, figures in found if kind != "Trial"]


def _mlx_result(tokens: tuple[int, ...], runs: Sequence[Run], model: str | None) -> Result:
    prompt, generate, batch = tokens or (0, 0, 0)
    is_usable = batch == 1
    # N tokens over the time of N - 1 steps: mlx_lm/generate.py starts its clock at the first.
    steps = (generate - 1) / generate if generate > 1 and is_usable else 0.0
    prefill = [[trial[0] for trial in trials if prompt] for trials, _ in runs]
    decode = [[trial[1] * steps for trial in trials if steps] for trials, _ in runs]
    found = MLX_ENDING.search(model or "")
    precision = (found[3] or f"INT{found[1] or found[2]}").upper() if found else NOT_STATED
    row = Row(
        artefact=f"mlx-{precision.lower()}" if found else "mlx",
        engine="mlx-lm",
        framework="MLX",
        precision=precision,
        workload=Workload(prompt, generate, joint=True),
        peak_memory_bytes=round(max(trial[2] for trials, _ in runs for trial in trials) * 1e9),
        verdict="VALID",
        reasons=[],
        source=MLX_LM_BENCHMARK,
        trials=_trials(prefill, decode, prompt) if is_usable else [],
    )
    name = ENDING.sub("", plain(model or "").rpartition("/")[2]) or NOT_STATED
    return Result(row, ModelInfo(name), [*_mlx_doubts(tokens, runs, steps)])


def _mlx_doubts(tokens: tuple[int, ...], runs: Sequence[Run], steps: float) -> Iterator[Reason]:
    if not tokens:
        text = "the context length is missing: keep the line that begins with `Timing with`"
        yield Reason("", "error", text)
    elif tokens[2] != 1:
        text = f"the rates are those of {tokens[2]} sequences together: measure with -b 1"
        yield Reason("", "error", text)
    if steps:
        yield warning(
            f"the printed generation_tps counts {tokens[1]} tokens in the time of one less, "
            f"(n+1)/n, and is {1 / steps - 1:.2%} too high: it was corrected here"
        )
    for trials, averages in runs:
        means = [statistics.fmean(column) for column in zip(*trials, strict=True)]
        pairs = zip(means, averages[0] if averages else means, strict=True)
        if any(abs(mean - given) > ROUNDED_TEXT for mean, given in pairs):
            text = "its averages are not those of its trials: lines are missing or were changed"
            yield Reason("", "error", text)
