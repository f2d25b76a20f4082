"""Measures what `edge serve` adds to its engine, warm keystrokes, and a process's first answer.

    python benchmarks/serve.py --llama-server PATH/TO/llama-server --json serve.json

Added: the same requests through HTTP, as streams on connections of their own, and in this process
by the loop that the server runs; each has a prompt that no cache knows. The quantiles of the times
to the first text, less the prompt's own as each request tells it, and between texts; and their
differences.

Keystrokes: a file of 1,000 tokens with the cursor after three quarters, and llama.vim's request
after every few characters typed there. Tokens computed, as the servers report them, and the time to
an answer of one token. llama-server has the same GGUF file, and puts the prefix first unless its
option for SPM is given; both are measured.

First answer: from the start of the process to the answer to its first request.

The order rotates from round to round, and the first round is a warm-up.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from http.client import HTTPConnection
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import edge  # before MLX, which it prepares

# isort: split
from apart import in_turn, served, write_json

from edge.cli.model_path import open_for
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.device.describe import usable_cores
from edge.generate.decode import TokenSource, open_source
from edge.generate.sampling import GREEDY
from edge.generate.stream import StopScanner, TokenClock, encode_beginning, text_events
from edge.stats import percentiles
from edge.tokenizer.tokenizer import Tokenizer

ARTEFACTS = ("mlx-fp16", "gguf-f16")
PEER = "llama-server"
FILE = Path(edge.__file__).parent / "data" / "corpus" / "expression_parser.py"
PROMPT_CHARACTERS = 200
FILE_TOKENS, BEFORE = 1000, 3 / 4
# What llama.vim's documentation starts llama-server with.
PEER_OPTIONS = ("--ctx-size", "0", "--cache-reuse", "256", "--parallel", "1", "--no-webui")


class Times(NamedTuple):
    """An answer's text, and milliseconds: of its prompt, from then to its first piece, between."""

    text: str
    prompt_ms: float
    first_ms: float
    gaps_ms: list[float]


def timed(pieces: Iterator[str], prompt_ms: Callable[[], float]) -> Times:
    """Reads an answer; `prompt_ms` is known after it."""
    begin_ns = time.monotonic_ns()
    found = [(piece, time.monotonic_ns()) for piece in pieces]
    stamps = [begin_ns, *(stamp for _, stamp in found)]
    first_ms, *gaps_ms = [(b - a) / 1e6 for a, b in pairwise(stamps)]
    text = "".join(piece for piece, _ in found)
    return Times(text, prompt_ms(), first_ms - prompt_ms(), gaps_ms)


def asked(port: int, path: str, body: Mapping[str, Any]) -> Iterator[bytes]:
    """The lines of an answer, on a connection of its own."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=600)) as connection:
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        if response.status != 200:
            sys.exit(f"{path} answers {response.status}: {response.read(1000)!r}")
        yield from response


def through_http(port: int, tokens: int, prompts: Iterator[str]) -> Times:
    """The next prompt's answer as a stream of the server."""
    body = {"prompt": next(prompts), "n_predict": tokens, "temperature": 0, "ignore_eos": True}
    lines = asked(port, "/completion", {**body, "stream": True})
    told: dict[str, Any] = {}

    def pieces() -> Iterator[str]:
        for line in lines:
            if line.startswith(b"data: "):
                told.update(json.loads(line[6:]))
                if told["content"]:
                    yield told["content"]

    return timed(pieces(), lambda: told["timings"]["prompt_ms"])


def in_process(source: TokenSource, tokenizer: Any, tokens: int, prompts: Iterator[str]) -> Times:
    """The next prompt's answer by the loop that the server runs."""
    clock = TokenClock()

    def pieces() -> Iterator[str]:
        nonlocal clock
        ids = encode_beginning(tokenizer, next(prompts))
        clock = TokenClock()
        _, made = source.generate(ids, tokens, GREEDY, on_prefill=clock.prefilled)
        how = StopScanner(()), clock, len(ids), None, ()
        yield from (event.text for event in text_events(made, tokenizer, *how) if event.text)

    return timed(pieces(), lambda: 1e3 * clock.prefill_s)


def prompts() -> Iterator[str]:
    """Prompts that differ from their first token on."""
    text = FILE.read_text(encoding="utf-8")[:PROMPT_CHARACTERS]
    return (f"{number}\n{text}" for number in count())


def added(path: Path, port: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What the server adds to the time of the first piece, and of each further one."""
    model, tokenizer, _ = open_for("serve", path)
    source = open_source(model)
    gc.freeze()  # as the server: this process has the model as well
    calls: dict[str, Callable[[], Times]] = {
        "in process": partial(in_process, source, tokenizer, args.tokens, prompts()),
        "http": partial(through_http, port, args.tokens, prompts()),
    }
    found = in_turn(calls, args.requests)
    if [times.text for times in found["http"]] != [times.text for times in found["in process"]]:
        sys.exit(f"{path.name}: the server's texts are not those of its loop")
    spans = {
        "first piece": {name: [t.first_ms for t in all_] for name, all_ in found.items()},
        "further piece": {
            name: [g for t in all_ for g in t.gaps_ms] for name, all_ in found.items()
        },
    }
    records = []
    for what, times in spans.items():
        quantiles = {name: percentiles(values) for name, values in times.items()}
        loop, http = quantiles["in process"], quantiles["http"]
        more = {name: http[name] - loop[name] for name in http}
        record = {"what": f"added, {path.name}", "quantity": what, "in_process_ms": loop}
        records.append({**record, "http_ms": http, "added_ms": more})
    return records


def keystrokes(tokenizer: Tokenizer, strokes: int, characters: int) -> list[dict[str, Any]]:
    """llama.vim's requests while text is typed into a file of FILE_TOKENS tokens."""
    files = sorted(FILE.parent.glob("*.py"))
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    ids = tokenizer.encode(text)[:FILE_TOKENS]
    before = tokenizer.decode(ids[: int(BEFORE * len(ids))])
    after = tokenizer.decode(ids[int(BEFORE * len(ids)) :])
    begin = len(before) - strokes * characters
    bodies = []
    for typed in range(begin, len(before) + 1, characters):
        lines, end, line = before[:typed].rpartition("\n")
        place = {"input_prefix": lines + end, "input_suffix": after, "prompt": line}
        how = {"input_extra": [], "n_predict": 1, "top_k": 40, "top_p": 0.9, "cache_prompt": True}
        wanted = {"response_fields": ["content", "timings/prompt_n"]}
        bodies.append({**place, **how, "samplers": ["top_k", "top_p", "infill"], **wanted})
    return bodies


def typed(ports: Mapping[str, int], bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tokens computed and milliseconds of each server's answers to all keystrokes but the first."""

    def stroke(port: int, left: Iterator[Mapping[str, Any]]) -> tuple[int, float]:
        begin_s = time.monotonic()
        answer = b"".join(asked(port, "/infill", next(left)))
        return json.loads(answer)["timings/prompt_n"], 1e3 * (time.monotonic() - begin_s)

    calls = {name: partial(stroke, port, iter(bodies)) for name, port in ports.items()}
    found = in_turn(calls, len(bodies) - 1)
    records = []
    for name, strokes in found.items():
        computed, times_ms = zip(*strokes, strict=True)
        record = {"what": "keystroke", "name": name, "computed_tokens": statistics.mean(computed)}
        records.append(
            {**record, "most_computed": max(computed), "first_ms": percentiles(times_ms)}
        )
    return with_ratios(records)


def with_ratios(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records with the ratio of their median time to llama-server's, where that has run."""
    peer = next((r["first_ms"]["p50"] for r in records if r["name"] == PEER), None)
    return [{**r, "ratio": peer and r["first_ms"]["p50"] / peer} for r in records]


def started(commands: Mapping[str, Sequence[str]], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds from the start of a process to its first answer."""

    def once(command: Sequence[str]) -> float:
        with served(command) as (_, _, first_s):
            return 1e3 * first_s

    found = in_turn({name: partial(once, words) for name, words in commands.items()}, rounds)
    return with_ratios(
        [
            {"what": "first answer", "name": name, "first_ms": {"p50": statistics.median(times)}}
            for name, times in found.items()
        ]
    )


def measure(paths: Sequence[Path], args: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The records of each part, when it is done."""
    serve = [sys.executable, "-m", "edge", "serve", "--power", "none"]
    commands = {f"edge serve, {path.name}": [*serve, str(path)] for path in paths}
    if args.llama_server is not None:
        threads = ("--threads", str(usable_cores()))
        (file,) = (str(path) for path in paths if path.suffix == ".gguf")
        peer = [str(args.llama_server), "--model", file, *PEER_OPTIONS, *threads]
        commands |= {PEER: peer, f"{PEER}, SPM": [*peer, "--spm-infill"]}
    yield started(commands, args.starts)
    with ExitStack() as servers:
        ports = {}
        for name, words in commands.items():
            _, ports[name], _ = servers.enter_context(served(words))
        for path in paths:
            yield added(path, ports[f"edge serve, {path.name}"], args)
        bodies = keystrokes(Tokenizer.load(paths[0]), args.strokes, args.characters)
        yield typed(ports, bodies)


def show(records: Sequence[Mapping[str, Any]]) -> None:
    """Prints a line per record."""
    for r in records:
        if "added_ms" in r:
            times = "".join(
                f"  {name} {r[key]['p50']:7.2f} {r[key]['p99']:7.2f}"
                for name, key in (
                    ("http", "http_ms"),
                    ("loop", "in_process_ms"),
                    ("added", "added_ms"),
                )
            )
            print(f"{r['what']:<20} {r['quantity']:<14}{times}  ms (p50 p99)", flush=True)
            continue
        times = " ".join(f"{value:9.2f}" for value in r["first_ms"].values())
        ratio = "" if r["ratio"] is None else f"  {r['ratio']:6.3f} x {PEER}'s"
        tokens = f"  {r['computed_tokens']:6.1f} tokens" if "computed_tokens" in r else ""
        which = " ".join(r["first_ms"])
        print(f"{r['what']:<20} {r['name']:<24} {times} ms ({which}){tokens}{ratio}", flush=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="converted for this run")
    parser.add_argument("--llama-server", type=Path, help="the program to compare with")
    parser.add_argument("--requests", type=int, default=300, help="with and without HTTP")
    parser.add_argument("--tokens", type=int, default=32, help="of each of their answers")
    parser.add_argument("--strokes", type=int, default=60)
    parser.add_argument("--characters", type=int, default=3, help="typed between two requests")
    parser.add_argument("--starts", type=int, default=5, help="of each server")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    return parser.parse_args()


def main() -> None:
    """Measures, prints each part, writes the file."""
    args, records = parsed(), []
    with tempfile.TemporaryDirectory() as folder:
        recipes = [RECIPES[name] for name in ARTEFACTS]
        made = convert(open_checkpoint(args.model), recipes, Path(folder), lambda *_: None)
        for found in measure([artefact.path for artefact in made], args):
            show(found)
            records += found
    keys = ("model", "requests", "tokens", "strokes", "characters", "starts")
    method = {key: getattr(args, key) for key in keys}
    if args.llama_server is not None:
        said = subprocess.run(
            [args.llama_server, "--version"], capture_output=True, text=True, check=True
        )
        method["peer"] = [PEER, *PEER_OPTIONS, said.stderr.splitlines()[0]]
    write_json(args.json, {**method, "ratio": "of medians; below 1 edge is faster"}, records)


if __name__ == "__main__":
    main()
