"""Options of `edge bench`; the short flags are llama-bench's."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from edge.cli.options import shared
from edge.errors import EdgeError
from edge.formats.files import user_path
from edge.quality import TOKENS

# Speed settles in 3 s (hyperfine); energy counters are published up to 2.2 s apart.
SPEED_WINDOW_S, ENERGY_WINDOW_S = 3.0, 10.0
# llama-bench's defaults.
PROMPT, GENERATE, DEPTH, REPETITIONS = 512, 128, 0, 5
# llama.cpp's limit of sequences in a context.
MOST_PARALLEL = 256
# The names in edge.bench.workload, which is slow to import.
TABLE_11_SUITE = "table11"
UNTIL_ROUNDS = 8  # edge.bench.until's LEAST_ROUNDS
SUITES = (TABLE_11_SUITE, "quick", "depth", "localscore")
# Options by the names that argparse gives them: of artefacts that are converted, and those that say
# nothing about a running server.
OF_CHECKPOINT = (
    *("rows", "peers", "kv_bits", "out", "revision", "layers", "rope_theta", "context"),
)
OF_FILES = (
    *OF_CHECKPOINT,
    *("models", "depth", "parallel", "suite", "threads", "wait_idle", "quality", "bandwidth_gb_s"),
    *("baseline", "vs", "until"),
)
OF_WORKLOAD = ("prompt", "generate", "depth", "joint", "parallel")
# Options of llama-bench that have one setting here: flags, values that say so, and the setting.
SETTLED: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (("-ngl", "--n-gpu-layers"), ("99", "999", "-1"), "all layers are on the GPU, if there is one"),
    (("-fa", "--flash-attn"), ("auto",), "llama.cpp chooses flash attention itself"),
    (("-b", "--batch-size"), ("2048",), "a prompt is given in batches of 2048 tokens"),
    (("-ub", "--ubatch-size"), ("512",), "a prompt is computed 512 tokens at a time"),
    (("-ctk", "--cache-type-k"), ("f16",), "the cache is float16, and --kv-bits is for MLX"),
    (("-ctv", "--cache-type-v"), ("f16",), "the cache is float16, and --kv-bits is for MLX"),
    (("-mmp", "--mmap"), ("1",), "weights are mapped, or read with EDGE_NO_MMAP=1 set"),
    (("-nkvo", "--no-kv-offload"), ("0",), "the cache is on the layers' device"),
    (("-sm", "--split-mode"), ("layer",), "several GPUs share the layers"),
    (("-mg", "--main-gpu"), ("0",), "several GPUs share the layers"),
    (("-ts", "--tensor-split"), ("0",), "several GPUs share the layers"),
    (("-dev", "--device"), ("auto",), "the GPU is used, if there is one"),
    (("-embd", "--embeddings"), ("0",), "generation is measured, not embeddings"),
    (("--prio",), ("0",), "the process keeps its priority; use nice to change it"),
    (("--delay",), ("0",), "--cooldown S waits until the machine is idle and cool"),
    (("--no-warmup",), (), "the first trial of each process warms up and is not counted"),
    (("-v", "--verbose"), (), "-o json has every trial"),
    (("-oe", "--output-err"), ("none",), "the profile that is saved has everything"),
    (("-hf", "--hf-repo"), (), "download the GGUF file, and give its path as MODEL"),
)
RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?:([+*])(\d{1,9}))?)?")
MOST_VALUES = 1000
TIMEOUT = "time limit of a process in seconds; with --each also of waiting for the other devices"


def parser() -> argparse.ArgumentParser:
    parser = shared.new_parser()
    _add_models(parser)
    shared.add_artefacts(parser, "--rows", "artefacts to measure")
    parser.set_defaults(rows=None)
    _add_workload(parser)
    _add_method(parser.add_argument_group("measurement"))
    engines = parser.add_argument_group("engines")
    peers = "also run the MLX artefacts with mlx-lm's network, in the same compute dtype"
    engines.add_argument("--peers", action="store_true", help=peers)
    shared.add_kv_bits(engines)
    shared.add_threads(engines, " that other programs leave free")
    for flags, values, setting in SETTLED:
        parser.add_argument(
            *flags, action=_Settled, nargs="?", const=(values, setting), help=argparse.SUPPRESS
        )
    _add_server(parser)
    _add_ratios(parser)
    compare = parser.add_argument_group("comparison of profiles, instead of measuring")
    meaning = "print B's speed, energy and memory relative to A's; both of one model"
    shared.add_input(compare, "--compare", nargs=2, metavar=("A", "B"), help=meaning)
    percent = shared.number(0, 99.999, "a percentage from 0 to below 100", _percentage)
    compare.add_argument(
        "--min-effect",
        metavar="PERCENT",
        type=percent,
        default=2.0,
        help="ignore differences below PERCENT",
    )
    meaning = (
        "under mlx.launch: every device measures itself, and the first collects the profiles and "
        "compares the devices as edge report --devices does"
    )
    parser.add_argument("--each", action="store_true", help=meaning)
    parser.set_defaults(is_split=False)  # by edge.cli.together
    shared.add_out(parser, "folder of the artefacts")
    save, folder = "folder for the profile and its plot", Path("profiles/local")
    shared.add_path(parser, "--save", metavar="DIR", default=folder, help=save)
    shared.add_table_output(parser)
    return parser


def _add_models(parser: argparse.ArgumentParser) -> None:
    meaning = (
        "Several GGUF files and MLX directories are measured without conversion; so is one GGUF "
        "file, quantised MLX directory or directory of another architecture, unless --rows or "
        f"--suite {TABLE_11_SUITE} is given."
    )
    shared.add_model(
        parser,
        "models",
        nargs="*",
        default=["demo"],
        help=f"{shared.CHECKPOINT} (default: demo). {meaning}",
    )
    shared.add_model(
        parser, "-m", dest="more_models", action="append", default=[], help="the same as MODEL"
    )
    shared.add_corrections(parser)


class _Settled(argparse.Action):
    """Accepts a value that says what edge does; refuses another."""

    def __call__(self, parser: Any, namespace: Any, value: Any, flag: str | None = None) -> None:
        values, setting = self.const
        if value not in values:
            raise argparse.ArgumentError(None, f"{flag} is not an option here: {setting}")


def check(args: argparse.Namespace) -> None:
    if args.compare is not None:
        return
    new = parser()
    if args.more_models:
        models = args.models if shared.given(args, new, ["models"]) else []
        args.models = [*models, *args.more_models]
    if args.server is not None and (given := shared.given(args, new, OF_FILES)):
        raise EdgeError(f"--server measures what the server runs; leave out {', '.join(given)}.")
    if args.served is not None and args.server is None:
        raise EdgeError("--model names the model of a server; add --server, or give MODEL alone.")
    if args.until is not None and args.baseline is None and args.vs is None:
        raise EdgeError("--until needs something to compare; add --baseline ROW or --vs PYTHON.")
    if args.suite is not None and (given := shared.given(args, new, OF_WORKLOAD)):
        raise EdgeError(
            f"--suite {args.suite} sets the workloads itself; leave out {', '.join(given)}."
        )


def check_files(args: argparse.Namespace) -> None:
    """Refuse options of a conversion, or of edge's own network, for files as they are."""
    given = shared.given(args, parser(), OF_CHECKPOINT)
    if args.suite == TABLE_11_SUITE:
        given.append(f"--suite {TABLE_11_SUITE}")
    if given:
        raise EdgeError(
            f"{', '.join(given)} cannot be used with files that are measured as they are; leave it "
            f"out, or give one MODEL and --rows to convert it."
        )


def _add_workload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "workload", "LIST is 512, or 512,1024, or a range: 128-512+128 or 128-1024*2"
    )
    for flags, dest, default, meaning in (
        (("-p", "--prompt", "--n-prompt"), "prompt", PROMPT, "prompt tokens; 0: none"),
        (("-n", "--generate", "--n-gen"), "generate", GENERATE, "generated tokens; 0: none"),
        (("-d", "--depth", "--n-depth"), "depth", DEPTH, "context tokens before the test"),
    ):
        group.add_argument(
            *flags,
            dest=dest,
            metavar="LIST",
            type=_token_counts,
            action="extend",
            help=f"{meaning} (default: {default})",
        )
    group.add_argument(
        "-npl",
        "--parallel",
        metavar="LIST",
        type=_sequence_counts,
        action="extend",
        help="sequences that are computed at once, as in llama-batched-bench; rates are those of "
        "all together (default: 1)",
    )
    group.add_argument(
        "-pg",
        dest="joint",
        metavar="P,N",
        type=_prompt_and_generate,
        action="append",
        help="also generate N tokens after a prompt of P tokens; with -p 0 -n 0, only that",
    )
    meaning = f"predefined workloads; {TABLE_11_SUITE} also prints the published figures"
    group.add_argument("--suite", choices=SUITES, help=meaning)


def _token_counts(text: str) -> list[int]:
    """Parse llama-bench's lists: numbers and ranges FIRST-LAST, +STEP or *FACTOR."""
    return [value for part in text.split(",") for value in _range(part)]


def _range(part: str) -> list[int]:
    values: list[int] = []
    if match := RANGE.fullmatch(part):
        value, last, step = int(match[1]), int(match[2] or match[1]), int(match[4] or 1)
        while value <= last and len(values) <= MOST_VALUES:
            values.append(value)
            value = value * step if match[3] == "*" else value + step
    if not 0 < len(values) <= MOST_VALUES:
        raise argparse.ArgumentTypeError(
            f"{part!r} is not a whole number or an increasing range, such as 512 or 128-512+128"
        )
    return values


def _sequence_counts(text: str) -> list[int]:
    values = _token_counts(text)
    if not 0 < min(values) <= max(values) <= MOST_PARALLEL:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of whole numbers from 1 to {MOST_PARALLEL}"
        )
    return values


def _prompt_and_generate(text: str) -> tuple[int, int]:
    values = _token_counts(text) if re.fullmatch(r"\d+,\d+", text) else []
    if len(values) != 2 or values[0] < 1 or values[1] < 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not P,N with a prompt of at least 1 and at least 2 generated tokens"
        )
    return values[0], values[1]


def _add_ratios(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "comparison within the run",
        "the processes of a round take turns, trial by trial, and are compared by round, which "
        "takes slow changes of the machine out",
    )
    which = group.add_mutually_exclusive_group()
    shared.add_baseline(which)
    meaning = (
        "run every row in another environment too, as with another mlx or edge, and print the "
        "ratio of its rows to these; PYTHON is its interpreter, such as ../old/.venv/bin/python"
    )
    which.add_argument("--vs", metavar="PYTHON", type=_program, help=meaning)
    meaning = (
        "with --baseline or --vs: add rounds until a difference of PERCENT would show in decode "
        f"and prefill of every row, from {UNTIL_ROUNDS} rounds on"
    )
    kind = shared.number(0.1, 100, "a percentage from 0.1 to 100", _percentage)
    group.add_argument("--until", metavar="PERCENT", type=kind, help=meaning)
    kind = shared.number(0.1, 1440, "a number of minutes from 0.1 to 1440")
    meaning = "bound of --until; no round begins that would not end by then"
    group.add_argument("--until-minutes", metavar="M", type=kind, default=30.0, help=meaning)


def _program(text: str) -> str:
    """A name on the PATH, or the absolute path of a file."""
    return str(user_path(text).absolute()) if os.sep in text else text


def _percentage(text: str) -> float:
    return float(text.removesuffix("%"))


def _add_server(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "running server",
        "measure a server through its OpenAI route (/v1/completions) instead of artefacts, such as "
        "Ollama, LM Studio, llama-server or mlx_lm.server. Besides these two only -p, -n, -pg, -r, "
        "--rounds, --min-window, --cooldown, --idle, --power, --timeout, --save and -o apply",
    )
    group.add_argument("--server", metavar="URL", help="address, such as http://localhost:8080")
    meaning = "the server's name for the model (default: the only one that it lists)"
    group.add_argument("--model", dest="served", metavar="NAME", help=meaning)


def _add_method(group: argparse._ArgumentGroup) -> None:
    meaning = "trials per row, rounded up to a multiple of the rounds"
    shared.add_count(group, "-r", "--repetitions", default=REPETITIONS, help=meaning)
    meaning = "rounds; each runs every row once, in a fresh process; at most -r"
    shared.add_count(group, "--rounds", default=3, help=meaning)
    meaning = "seed of the token ids and of the order of rows"
    group.add_argument("--seed", metavar="N", type=int, default=0, help=meaning)
    for flag, default, meaning in (
        (
            "--min-window",
            None,
            "minimum seconds per trial, reached by repeating it; 0: no repetition (default: "
            f"{SPEED_WINDOW_S:g}, or {ENERGY_WINDOW_S:g} with a power meter, where 30 is better)",
        ),
        ("--cooldown", 60.0, "maximum seconds to wait for an idle, cool machine; 0: do not wait"),
        ("--idle", 10.0, "seconds to measure idle power, before and after; needs a power meter"),
    ):
        group.add_argument(flag, metavar="S", type=shared.seconds, default=default, help=meaning)
    group.add_argument(
        "--wait-idle",
        metavar="S",
        type=shared.seconds,
        nargs="?",
        const=300.0,
        default=0.0,
        help="before the run, wait up to S seconds until other programs leave enough cores free "
        "(default: 0; without a value: 300)",
    )
    shared.add_power(group, "--power", "auto")
    shared.add_bandwidth(group)
    meaning = "do not check the logits, which is slow for large models"
    group.add_argument("--no-check", dest="check", action="store_false", help=meaning)
    shared.add_count(
        group,
        "--quality",
        least=0,
        metavar="TOKENS",
        nargs="?",
        const=TOKENS,
        help="also measure perplexity and KL divergence from mlx-fp16, as edge eval does, on at "
        f"most TOKENS tokens of code; 0: the whole sample; without a value: {TOKENS}",
    )
    shared.add_count(group, "--timeout", default=3600, metavar="S", help=TIMEOUT)
