"""Measures how often edge bench's comparisons are wrong, and what they can see.

    python benchmarks/error_rates.py record trials.jsonl --rounds 120 -p 128 -n 64
    python benchmarks/error_rates.py replay trials.jsonl --experiments 2000 --out rates.json

`record` runs rounds of two equal arms that take turns, as `edge bench --vs` does, and adds a line
of JSON per round and row; started again with the same words it goes on where it was. In half of the
rounds the second arm is slowed by 1, 2, 3, 5 or 10 % within its timed loop (slow_worker.py), in
seeded order; in the others by nothing.

`replay` makes experiments of the rounds and prints how often each way finds a difference:

    unpaired  --compare: Welch's test of the processes' means of two runs at other times
    paired    --vs and --baseline: the interval of the rounds' ratios
    until     the same, with rounds added until a difference of --percent would show

"real" are experiments of consecutive rounds that share none with another, slowed as they ran; the
others draw blocks of neighbouring rounds, undo their slowdown and scale the second arm's rates. At
0 % every difference that is found is a false alarm; beyond it what is not found is a miss.
Intervals are Clopper and Pearson's at 95 %; those of replayed experiments do not include that the
recorded rounds are a sample themselves.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import edge  # noqa: F401  before MLX, which it prepares

# isort: split
from apart import write_json

from edge.bench.runner import run_in_turns
from edge.bench.until import LEAST_ROUNDS, is_look
from edge.bench.worker import Job
from edge.convert.artefacts.manifest import Corrections
from edge.convert.artefacts.recipes import find_recipe
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.device.describe import usable_cores
from edge.profile.baseline import RATES, UNTIL_CONFIDENCE
from edge.profile.profile import Workload
from edge.profile.ratio import log_ratios
from edge.profile.trial import Trial
from edge.stats import CONFIDENCE, detectable, interval, paired, welch

SLOWER = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1)
ROUNDS = (3, 10, 20)
# Neighbouring rounds that a replayed experiment draws together, so that drift stays in it.
BLOCK = 3
Rates = list[dict[str, float]]  # of the trials of one arm in one round


# --- recording


def record(args: argparse.Namespace) -> None:
    """Adds rounds to the file until there are as many as asked for."""
    jobs = dict(planned(args))
    done = (
        [json.loads(line) for line in args.file.read_text().splitlines()]
        if args.file.exists()
        else []
    )
    with tempfile.TemporaryDirectory() as folder, args.file.open("a") as file:
        for number in range(args.rounds):
            share = share_of(number, args.seed)
            for row, job in jobs.items():
                if any((found["round"], found["row"]) == (number, row) for found in done):
                    continue
                line = measure_round(job, share, number, Path(folder), args.seed)
                file.write(json.dumps({"row": row, **line}) + "\n")
                file.flush()
                print(f"round {number + 1} of {args.rounds}, {row}: {share:.0%} slower", flush=True)


def planned(args: argparse.Namespace) -> Iterator[tuple[str, Job]]:
    """A job per artefact of the demo, made where it is missing."""
    checkpoint = open_checkpoint("demo", None, Corrections())
    recipes = [find_recipe(name) for name in args.rows]
    made = convert(checkpoint, recipes, args.models, lambda *_: None)
    workload = Workload(args.prompt, args.generate)
    for artefact in made:
        yield (
            artefact.recipe.name,
            Job(
                engine="mlx" if artefact.recipe.is_mlx else "llama.cpp",
                path=str(artefact.path),
                workload=workload,
                vocab_size=checkpoint.config.vocab_size,
                seed=args.seed,
                repetitions=args.trials,
                warmups=1,
                threads=args.threads,
                min_window_s=args.min_window,
                as_is=True,  # without the check of the logits
            ),
        )


def share_of(number: int, seed: int) -> float:
    """How much slower the second arm is: in every ten rounds nothing in five, each share once."""
    cycle = [*SLOWER[:1] * (len(SLOWER) - 1), *SLOWER[1:]]
    random.Random(f"{seed} {number // len(cycle)}").shuffle(cycle)
    return cycle[number % len(cycle)]


def measure_round(job: Job, share: float, number: int, folder: Path, seed: int) -> dict[str, Any]:
    """One round of both arms, which start in seeded order."""
    arms = [slowed(job, 0.0, folder), slowed(job, share, folder)]
    order = random.Random(f"order {seed} {number}").sample((0, 1), 2)
    before = processor_ticks()
    outcomes = run_in_turns([arms[arm] for arm in order], 600.0, [lambda _: None] * 2)
    if failed := next((outcome.failure for outcome in outcomes if outcome.failure), None):
        sys.exit(failed)
    trials = dict(zip(order, (outcome.trials for outcome in outcomes), strict=True))
    return {
        "round": number,
        "slower": share,
        "at_s": time.time(),
        "first": order[0],
        "ticks": [after - start for after, start in zip(processor_ticks(), before, strict=True)],
        "arms": [[rates_of(t) for t in trials[arm] if not t.warmup] for arm in (0, 1)],
    }


def slowed(job: Job, share: float, folder: Path) -> Job:
    """The job in an interpreter that runs the slow worker, whatever it is told."""
    script = folder / f"python-{share:g}"
    if not script.exists():
        slow = Path(__file__).with_name("slow_worker.py")
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{slow}" {share:g} "$@"\n')
        script.chmod(0o755)
    return Job(**{**vars(job), "python": str(script)})


def rates_of(trial: Trial) -> dict[str, float]:
    """The rates that are compared."""
    return {key: rate for key in RATES if (rate := getattr(trial, key))}


def processor_ticks() -> list[int]:
    """Linux's counts of user, nice, system, idle, waiting, interrupts and stolen time."""
    path = Path("/proc/stat")
    return [int(word) for word in path.read_text().split()[1:9]] if path.exists() else []


# --- replaying


@dataclass(frozen=True)
class Round:
    """One rate in one round: the second arm over the first (a logarithm), and both arms' means."""

    log: float
    means: tuple[float, float]

    @classmethod
    def of(cls, line: dict[str, Any], key: str) -> Round:
        first, second = (
            [Trial(warmup=False, repetition=i, **t) for i, t in enumerate(arm)]
            for arm in line["arms"]
        )
        (log,) = log_ratios(second, first, key)
        means = [statistics.fmean(t[key] for t in arm) for arm in line["arms"]]
        return cls(log, (means[0], means[1]))

    @classmethod
    def equal(cls, line: dict[str, Any], key: str) -> Round:
        """The round without the slowdown that its second arm had."""
        return cls.of(line, key).slowed(1 / (1 + line["slower"]) - 1)

    def exchanged(self) -> Round:
        return Round(-self.log, self.means[::-1])

    def slowed(self, share: float) -> Round:
        """As if the second arm had taken longer."""
        first, second = self.means
        return Round(self.log - math.log1p(share), (first, second / (1 + share)))


def is_outside(limits: tuple[float, float] | None) -> bool:
    """True for an interval that leaves out no difference."""
    return limits is not None and not limits[0] <= 0 <= limits[1]


def finds_paired(rounds: Sequence[Round]) -> bool:
    return is_outside(paired([each.log for each in rounds]).interval)


def finds_student(rounds: Sequence[Round]) -> bool:
    return is_outside(interval([each.log for each in rounds]))


def finds_unpaired(a: Sequence[Round], b: Sequence[Round]) -> bool:
    """The test of --compare: the first arm in one run against the second in another."""
    test = welch(*([math.log(each.means[arm]) for each in run] for arm, run in enumerate((a, b))))
    return test is not None and test.p < 1 - CONFIDENCE


def until(rounds: Sequence[Round], target: float) -> tuple[bool, int]:
    """What an experiment with --until finds, and the rounds it takes, of those that are given."""
    logs = [each.log for each in rounds]
    for count in filter(is_look, range(len(logs) + 1)):
        limits = paired(logs[:count], UNTIL_CONFIDENCE).interval
        half = (limits[1] - limits[0]) / 2 if limits else math.inf
        if math.expm1(detectable(half, count - 1, UNTIL_CONFIDENCE)) <= target:
            return is_outside(limits), count
    return is_outside(limits), len(logs)


def drawn(rounds: Sequence[Round], count: int, slower: float, rng: random.Random) -> list[Round]:
    """Rounds in blocks of neighbours.

    The arms of half of the blocks are exchanged: they are equal, so that without a slowdown every
    difference is chance, whatever the recorded rounds happen to favour.
    """
    picked: list[Round] = []
    while len(picked) < count:
        start = rng.randrange(max(len(rounds) - BLOCK, 0) + 1)
        block = rounds[start : start + BLOCK]
        picked += [each.exchanged() for each in block] if rng.random() < 0.5 else block
    return [each.slowed(slower) for each in picked[:count]]


def replay(args: argparse.Namespace) -> None:
    """Prints a table per row and rate, and writes all with --out."""
    lines = [json.loads(line) for line in args.file.read_text().splitlines()]
    rows = {line["row"]: [each for each in lines if each["row"] == line["row"]] for line in lines}
    results = []
    for (row, own), key in product(rows.items(), RATES):
        equal = sum(line["slower"] == 0 for line in own)
        print(f"\n{row}, {key.partition('_')[0]}: {len(own)} rounds, {equal} of equal arms\n")
        print(f"| way | rounds | {' | '.join(f'{share:.0%} slower' for share in SLOWER)} |")
        print(f"|---|---|{'---:|' * len(SLOWER)}")
        for way, rounds, found in ways(own, key, args):
            print(f"| {way} | {rounds} | {' | '.join(map(cell, found))} |", flush=True)
            for share, answers in zip(SLOWER, found, strict=True):
                about = {"row": row, "rate": key, "way": way, "rounds": rounds, "slower": share}
                limits = clopper_pearson(sum(answers), len(answers)) if answers else None
                counts = {"found": sum(answers), "of": len(answers), "interval": limits}
                results.append({**about, **counts})
    names = ("experiments", "seed", "percent", "most_rounds")
    method = {name: getattr(args, name) for name in names} | {"block": BLOCK}
    method["recorded_rounds"] = {row: len(own) for row, own in rows.items()}
    write_json(args.out, method, results)


def cell(answers: Sequence[bool]) -> str:
    """How often a difference was found, with the interval."""
    if not answers:
        return "—"
    low, high = clopper_pearson(sum(answers), len(answers))
    share = sum(answers) / len(answers)
    return f"{share:.1%} ({100 * low:.1f} to {100 * high:.1f}) of {len(answers)}"


def ways(
    lines: Sequence[dict[str, Any]], key: str, args: argparse.Namespace
) -> Iterator[tuple[str, str, list[list[bool]]]]:
    """Each way at each number of rounds: the answers of its experiments for each slowdown."""
    rng = random.Random(f"replay {args.seed}")
    equal = [Round.equal(line, key) for line in lines]
    for count in ROUNDS:
        real = [list(real_experiments(lines, key, slower, count)) for slower in SLOWER]
        yield "paired, real", str(count), [list(map(finds_paired, each)) for each in real]
        # Each run's first arm against the second arm of the next.
        answers = [[finds_unpaired(a, b) for a, b in pairwise(each)] for each in real]
        yield "unpaired, real", str(count), answers
        if len(equal) < count:
            continue
        draws = [
            [drawn(equal, count, slower, rng) for _ in range(args.experiments)] for slower in SLOWER
        ]
        yield "paired", str(count), [list(map(finds_paired, each)) for each in draws]
        yield "paired, Student's t", str(count), [list(map(finds_student, each)) for each in draws]
        answers = [
            [finds_unpaired(drawn(equal, count, 0.0, rng), other) for other in each]
            for each in draws
        ]
        yield "unpaired", str(count), answers
    if len(equal) >= LEAST_ROUNDS:
        ends = [
            [
                until(drawn(equal, args.most_rounds, slower, rng), args.percent / 100)
                for _ in range(args.experiments)
            ]
            for slower in SLOWER
        ]
        counts = sorted(count for each in ends for _, count in each)
        rounds = f"{counts[len(counts) // 2]} ({counts[0]} to {counts[-1]})"
        yield f"--until {args.percent:g}%", rounds, [[found for found, _ in each] for each in ends]


def real_experiments(
    lines: Sequence[dict[str, Any]], key: str, slower: float, count: int
) -> Iterator[list[Round]]:
    """Consecutive rounds as they were measured, none in two experiments."""
    own = [Round.of(line, key) for line in lines if line["slower"] == slower]
    for start in range(0, len(own) - count + 1, count):
        yield own[start : start + count]


def clopper_pearson(found: int, of: int, level: float = 0.05) -> tuple[float, float]:
    """Exact interval of a share, by bisection of the binomial distribution."""

    def tail(share: float, least: int) -> float:  # of at least so many
        return math.fsum(binomial(of, k, share) for k in range(least, of + 1))

    low = 0.0 if found == 0 else bisect(lambda share: tail(share, found) > level / 2)
    high = 1.0 if found == of else bisect(lambda share: 1 - tail(share, found + 1) < level / 2)
    return low, high


def binomial(of: int, k: int, share: float) -> float:
    """The chance of k."""
    if share in (0.0, 1.0):
        return float(k == of * share)
    log = math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
    return math.exp(log + k * math.log(share) + (of - k) * math.log1p(-share))


def bisect(is_above: Callable[[float], bool]) -> float:
    """The share from 0 to 1 from which on it is true."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return (low + high) / 2


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="measure rounds and add them to the file")
    recording.add_argument("file", type=Path)
    recording.add_argument("--rows", nargs="+", default=["mlx-fp16", "gguf-q6_k"])
    recording.add_argument("--models", type=Path, default=Path("models/demo"))
    recording.add_argument("--rounds", type=int, default=120)
    recording.add_argument("--trials", type=int, default=3, help="trials per process")
    recording.add_argument("-p", "--prompt", type=int, default=512)
    recording.add_argument("-n", "--generate", type=int, default=128)
    recording.add_argument("-t", "--threads", type=int, default=usable_cores())
    recording.add_argument("--min-window", type=float, default=1.0, metavar="S")
    replaying = commands.add_parser("replay", help="make experiments of the recorded rounds")
    replaying.add_argument("file", type=Path)
    replaying.add_argument("--experiments", type=int, default=2000, help="of each kind")
    replaying.add_argument("--percent", type=float, default=3.0, help="of --until")
    replaying.add_argument("--most-rounds", type=int, default=200, help="of --until")
    replaying.add_argument("--out", type=Path, help="JSON file for the results")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parsed()
    (record if arguments.command == "record" else replay)(arguments)
