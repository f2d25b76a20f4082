"""Soaks `edge serve`: many clients at once, of all dialects, some of which leave.

    python benchmarks/soak.py                            # the demo, 64 clients, 5 minutes
    python benchmarks/soak.py models/demo/mlx-int4 --minutes 1 --parallel 16

Options that are not this program's own go to `edge serve`. Each answer has temperature 0 or a seed,
and must be the one that was given while nobody else asked. Memory is that of the server's process:
the medians of the first and of the last fifth after a warm-up of a fifth. Exits with 1 if an answer
differs or fails, if memory grew by more than 5 %, or if the server does not end cleanly.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple

import psutil
from apart import served

MOST_GROWTH = 0.05
LEAVING = 0.3  # share of the clients
TOKENS = 24
HOLES = (
    ("import os\n\ndef f(path):\n    for key, value in d.", "():\n    print(key, value)\n"),
    ("with open(path) as file:\n    text = file.", "()\n    print(text)\n"),
    ("def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"),
)
QUESTIONS = ("Write a function that adds two numbers.", "What does len return?", "Say hi.")
GREEDY, DRAWN = {"temperature": 0}, {"temperature": 1.2, "seed": 7}


class Job(NamedTuple):
    """A request without `stream`."""

    path: str
    body: dict[str, Any]


def jobs() -> Iterator[Job]:
    """Requests of every kind."""
    for (prefix, suffix), question in zip(HOLES, QUESTIONS, strict=True):
        said = [{"role": "user", "content": question}]
        yield Job("/infill", {"input_prefix": prefix, "input_suffix": suffix, "n_predict": TOKENS})
        hole = {"prompt": prefix, "suffix": suffix}
        yield Job("/v1/completions", {**hole, "max_tokens": TOKENS})
        yield Job("/api/generate", {**hole, "options": {"num_predict": TOKENS}})
        for how in (GREEDY, DRAWN):
            yield Job("/completion", {"prompt": prefix, "n_predict": TOKENS, **how})
            yield Job("/v1/completions", {"prompt": prefix, "max_tokens": TOKENS, **how})
            yield Job("/v1/chat/completions", {"messages": said, "max_tokens": TOKENS, **how})
            options = {"num_predict": TOKENS, **how}
            yield Job("/api/generate", {"prompt": prefix, "raw": True, "options": options})
            yield Job("/api/chat", {"messages": said, "options": options})


def ask(port: int, job: Job, streams: bool, leaving: random.Random | None = None) -> str | int:
    """The answer's text, the status of a refusal, or -1 where this client has left."""
    timeout_s = 600 if leaving is None else leaving.expovariate(2)
    lines_left = None if leaving is None else leaving.randrange(TOKENS)
    text = ""
    with closing(HTTPConnection("127.0.0.1", port, timeout=timeout_s)) as connection:
        try:
            connection.request("POST", job.path, json.dumps({**job.body, "stream": streams}))
            response = connection.getresponse()
            if response.status != 200:
                return response.status
            for number, line in enumerate(response):
                if number == lines_left:
                    return -1
                data = line.removeprefix(b"data: ")
                if data.startswith(b"{"):
                    text += piece(json.loads(data))
        except TimeoutError:
            if leaving is None:
                raise
            return -1
    return text


def piece(value: dict[str, Any]) -> str:
    """The text in a value of any dialect."""
    if "error" in value:
        raise HTTPException(value["error"])
    (choice,) = value.get("choices", [value])
    said = choice.get("message") or choice.get("delta") or {}
    found = (each.get(name) for each in (choice, said) for name in ("text", "response", "content"))
    return next((text for text in found if text is not None), "")


class Soak:
    """Clients that ask until the time is over, and what became of it."""

    def __init__(self, port: int, clients: int):
        self._port, self._end_s = port, 0.0
        self._jobs = list(jobs())
        self._alone = [ask(port, job, False) for job in self._jobs]
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        seeds = range(clients)
        self._threads = [threading.Thread(target=self._live, args=(seed,)) for seed in seeds]

    def run(self, process: psutil.Process, seconds: float) -> list[int]:
        """Resident bytes of the process, once a second."""
        found = []
        self._end_s = time.monotonic() + seconds
        for thread in self._threads:
            thread.start()
        while time.monotonic() < self._end_s:
            found.append(process.memory_info().rss)
            time.sleep(1)
        for thread in self._threads:
            thread.join()
        return found

    def _live(self, seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < self._end_s:
            place, streams = chance.randrange(len(self._jobs)), chance.random() < 0.5
            job, leaving = self._jobs[place], chance.random() < LEAVING
            try:
                answer = ask(self._port, job, streams, chance if leaving else None)
            except (OSError, HTTPException, ValueError) as error:
                answer = repr(error)
            self._count(job, answer, self._alone[place])

    def _count(self, job: Job, answer: str | int, alone: str | int) -> None:
        if answer in (-1, 503):
            self.counts["left" if answer == -1 else "refused: full"] += 1
        elif answer == alone:
            self.counts["equal"] += 1
        else:
            self.counts["different or failed"] += 1
            self.problems.append(f"{job}\n  alone: {alone!r}\n  now:   {answer!r}")


def idle(port: int) -> bool:
    """Whether nobody is answered or waits any more, a moment after the last client has left."""
    for _ in range(100):
        with closing(HTTPConnection("127.0.0.1", port)) as connection:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        names = ("llamacpp:requests_processing ", "llamacpp:requests_deferred ")
        if [line.split()[1] for line in lines if line.startswith(names)] == ["0.0", "0.0"]:
            return True
        time.sleep(0.1)
    return False


def main() -> None:
    """Soaks, prints, exits with 1 on a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=5.0)
    args, more = parser.parse_known_args()
    command = [sys.executable, "-m", "edge", "serve", args.model, "--power", "none", *more]
    with served(command) as (process, port, _):
        soak = Soak(port, args.clients)
        used = soak.run(psutil.Process(process.pid), 60 * args.minutes)
        is_idle = idle(port)
    fifth = len(used) // 5
    first, last = statistics.median(used[fifth : 2 * fifth]), statistics.median(used[-fifth:])
    growth = last / first - 1
    print(*soak.problems[:5], sep="\n")
    counts = ", ".join(f"{count} {name}" for name, count in sorted(soak.counts.items()))
    print(f"{args.clients} clients, {args.minutes:g} minutes: {counts}")
    print(f"memory {first / 1e6:.1f} MB, at the end {last / 1e6:.1f} MB: {growth:+.1%}")
    print(f"idle afterwards: {is_idle}; exit code of the server: {process.returncode}")
    if soak.problems or growth > MOST_GROWTH or not is_idle or process.returncode:
        sys.exit(1)


if __name__ == "__main__":
    main()
