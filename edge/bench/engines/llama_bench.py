"""llama.cpp's own benchmark as an engine: a `llama-bench` on the PATH, run on the same file.

It gives one time per repetition, so the tokens of a pass are stamped evenly over it, and their
single times say nothing. Where a repetition begins is told by --progress on its stderr, stamped
here as it comes: that places the passes among the samples of a power meter.
"""

from __future__ import annotations

import json
import math
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.bench.engines.engine import EngineFacts
from edge.bench.engines.llama_cpp import bytes_per_token
from edge.bench.job import Job
from edge.bench.trial import Trial
from edge.errors import EdgeError
from edge.gguf_file import read_gguf, read_tensors
from edge.llamacpp import has_amx, library

PROGRAM = "llama-bench"
RUN_BEGINS = re.compile(r"(prompt|generation) run \d+/\d+$")
# Repetitions are counted beforehand, and not all are as slow as the first.
MARGIN = 1.05
ONE_TIME = (
    "llama-bench gives one time for all tokens of a pass: token times and latencies are its mean"
)
NO_LOGITS = "llama-bench shows no logits: what it computes is not compared with the checkpoint"
Clock = Callable[[], int]
Span = tuple[int, int]


@dataclass(frozen=True)
class _Test:
    """One of llama-bench's results: its fields, and begin and end of every repetition.

    `split_ns` is where a joint test goes from prompt to generation.
    """

    fields: dict[str, Any]
    spans: list[Span]
    split_ns: list[int]


class LlamaBench:
    """One row's trials by llama-bench.

    Args:
        job: as for any engine; `path` is a GGUF file.
        clock: nanoseconds, the clock of the power meter.

    Raises:
        EdgeError: there is no llama-bench on the PATH.
    """

    def __init__(self, job: Job, clock: Clock):
        found = shutil.which(PROGRAM)
        if found is None:
            raise EdgeError(
                f"{PROGRAM} is not on the PATH; build it from llama.cpp, or measure llama.cpp "
                f"in-process (leave out --engine {PROGRAM})."
            )
        self._program = found
        self._job = job
        self._clock = clock
        # Both switches of a build that must not use AMX, as in edge.llamacpp.
        self._without_repacking = has_amx(library())
        self._fields: dict[str, Any] = {}

    def trials(self) -> Iterator[Trial]:
        """A warm-up of one repetition, which tells how many fill a window; then the trials.

        Raises:
            EdgeError: llama-bench failed or printed something unexpected.
        """
        job, work = self._job, self._job.workload
        first = self._trials(1, 1, warmup=True)[0]
        yield first
        longest_s = [first.ttft_s or 0.0, first.decode_s or 0.0]
        passes = [self._passes(s) for s in longest_s]
        if work.joint:
            yield from self._trials(job.repetitions, min(passes))
            return
        prefills = self._trials(job.repetitions, passes[0], generate=0) if work.prompt else []
        decodes = self._trials(job.repetitions, passes[1], prompt=0) if work.generate else []
        for number in range(job.repetitions):
            yield Trial(
                repetition=number + 1,
                warmup=False,
                prefill_ns=prefills[number].prefill_ns if prefills else (),
                passes_ns=decodes[number].passes_ns if decodes else (),
                prompt_tokens=work.prompt,
                round=job.round,
            )

    def facts(self) -> EngineFacts:
        """What llama-bench said of itself, and the file; after `trials`."""
        fields, path = self._fields, Path(self._job.path)
        flags = {"fa": "flash_attn", "b": "n_batch", "ub": "n_ubatch", "repack": "repack"}
        said = ", ".join(f"{flag} {fields[key]}" for flag, key in flags.items() if key in fields)
        return EngineFacts(
            device=fields.get("gpu_info") or fields["cpu_info"],
            compute_dtype="as llama.cpp chooses per tensor type",
            kv_dtype={"f16": "float16", "f32": "float32"}.get(fields["type_k"], fields["type_k"]),
            threads=fields["n_threads"],
            weight_bytes_per_token=sum(map(bytes_per_token, read_tensors(path))),
            kv_bytes_per_position=_kv_bytes(path),
            remarks=(ONE_TIME, NO_LOGITS),
            build=(
                f"llama-bench {fields['build_commit']} ({fields['build_number']}), "
                f"{fields['backends']}; {said}"
            ),
            gpu_layers=fields["n_gpu_layers"],
        )

    @staticmethod
    def peak_bytes() -> int:
        """The most memory that a llama-bench of this process had resident."""
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # the unit differs by system

    def _passes(self, seconds: float) -> int:
        if seconds <= 0:
            return 1
        wanted = math.ceil(MARGIN * self._job.min_window_s / seconds)
        return min(max(wanted, 1), self._job.max_passes)

    def _trials(
        self,
        count: int,
        passes: int,
        prompt: int | None = None,
        generate: int | None = None,
        warmup: bool = False,
    ) -> list[Trial]:
        """Run llama-bench once; each trial gets as many of its repetitions."""
        job, work = self._job, self._job.workload
        prompt = work.prompt if prompt is None else prompt
        generate = work.generate if generate is None else generate
        tests = self._run(prompt, generate, count * passes)
        self._fields = tests[0].fields
        prefills = [span for test in tests for span in _prefills(test)]
        decodes = [_even(span, generate) for test in tests for span in _decodes(test)]
        return [
            Trial(
                repetition=number if warmup else number + 1,
                warmup=warmup,
                prefill_ns=tuple(prefills[number * passes : (number + 1) * passes]),
                passes_ns=tuple(decodes[number * passes : (number + 1) * passes]),
                prompt_tokens=work.prompt,
                round=job.round,
            )
            for number in range(count)
        ]

    def _run(self, prompt: int, generate: int, repetitions: int) -> list[_Test]:
        job = self._job
        tests = ["-p", str(prompt), "-n", str(generate)]
        if job.workload.joint:
            tests = ["-p", "0", "-n", "0", "-pg", f"{prompt},{generate}"]
        numbers = {"-d": job.workload.depth, "-r": repetitions, "-t": job.threads}
        command = [self._program, "-m", job.path, "-o", "json", "--progress", *tests]
        command += [word for flag, number in numbers.items() for word in (flag, str(number))]
        command += ["--repack", "0"] if self._without_repacking else []
        marks, answer = _follow(command, self._clock)
        try:
            return _tests(json.loads(answer), marks, job.workload.joint)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise EdgeError(
                f"{PROGRAM} printed something else than expected ({type(error).__name__}: "
                f"{error}); take one of another release of llama.cpp."
            ) from None


def _follow(command: Sequence[str], clock: Clock) -> tuple[list[tuple[str, int]], str]:
    """Run it; what begins when, and what it printed.

    Should this process be killed, the next progress line into the broken pipe ends llama-bench.
    """
    marks: list[tuple[str, int]] = []
    last: deque[str] = deque(maxlen=1)
    with (
        tempfile.TemporaryFile(mode="w+", encoding="utf-8") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stderr is not None
        for line in process.stderr:
            stamp_ns = clock()
            if match := RUN_BEGINS.search(line.strip()):
                marks.append((match[1], stamp_ns))
            elif line.strip():
                last.append(line.strip())
        code = process.wait()
        if code != 0:
            raise EdgeError(
                f"{PROGRAM} failed with exit code {code} ({''.join(last)[:300]}); run it by hand "
                f"with -m {command[2]}."
            )
        out.seek(0)
        return marks, out.read()


def _tests(answer: Any, marks: list[tuple[str, int]], joint: bool) -> list[_Test]:
    """Results with their times.

    Raises:
        ValueError: not one mark for each repetition.
    """
    begins = {kind: [ns for k, ns in marks if k == kind] for kind in ("prompt", "generation")}
    found = []
    for fields in answer:
        samples = [int(ns) for ns in fields["samples_ns"]]
        starts = begins["prompt" if fields["n_prompt"] else "generation"]
        if len(starts) != len(samples) or min(samples) <= 0:
            raise ValueError(f"{len(samples)} times, {len(starts)} beginnings")
        spans = [(start, start + ns) for start, ns in zip(starts, samples, strict=True)]
        found.append(_Test(fields, spans, begins["generation"] if joint else []))
    if not found:
        raise ValueError("no result")
    return found


def _prefills(test: _Test) -> list[Span]:
    if test.split_ns:
        splits = zip(test.spans, test.split_ns, strict=True)
        return [(begin, split) for (begin, _), split in splits]
    return test.spans if test.fields["n_prompt"] else []


def _decodes(test: _Test) -> list[Span]:
    if test.split_ns:
        return [(split, end) for (_, end), split in zip(test.spans, test.split_ns, strict=True)]
    return test.spans if test.fields["n_gen"] else []


def _even(span: Span, tokens: int) -> tuple[int, ...]:
    """As many stamps and one more: its time is that of all tokens, the first included."""
    begin, end = span
    return tuple(begin + (end - begin) * i // tokens for i in range(tokens + 1))


def _kv_bytes(path: Path) -> int:
    """Of one position in float16, from the file's own description."""
    keys = read_gguf(path).keys
    name = keys["general.architecture"]
    layers, heads, width = (
        _number(keys[f"{name}.{key}"])
        for key in ("block_count", "attention.head_count", "embedding_length")
    )
    kv_heads = _number(keys.get(f"{name}.attention.head_count_kv", heads))
    return 2 * 2 * layers * kv_heads * (width // heads)


def _number(value: object) -> int:
    assert isinstance(value, int)  # the artefact is ours
    return value
