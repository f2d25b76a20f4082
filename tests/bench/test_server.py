"""Requests to fake servers with one fault each, and trials of mlx_lm.server itself."""

import json
import math
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from edge.bench.compare import compare
from edge.bench.plan import Target
from edge.bench.server import REMOTE, Client, ServedTrials, is_local, server_url, short_name
from edge.bench.trial import with_energy
from edge.bench.workload import served_workloads
from edge.cli.bench import _new_meter
from edge.cli.main import main
from edge.convert.artefacts.recipes import RECIPES
from edge.errors import EdgeError
from edge.power.meter import Sample
from edge.profile.check import check
from edge.profile.profile import ModelInfo, Workload, read
from tests.bench.test_compare import STEADY, profile, row

NEW = {"tokens": None, "usage": True, "cached": 0, "refuses": (), "status": 200, "say": None}


class Handler(BaseHTTPRequestHandler):
    """A completion whose prompt has a token per word and one more, as `server.plan` says."""

    protocol_version = "HTTP/1.0"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(200, json.dumps({"data": [{"id": m} for m in self.server.models]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        plan = self.server.plan
        self.server.bodies.append(body)
        if unknown := [name for name in plan.refuses if name in body]:
            return self.answer(400, json.dumps({"error": f"unknown {unknown}"}).encode())
        if plan.say is not None:
            return self.answer(plan.status, plan.say)
        tokens = plan.tokens or body["max_tokens"]
        events = [{"choices": [{"text": "a", "finish_reason": None}]} for _ in range(tokens)]
        events.append({"choices": [{"text": "", "finish_reason": "length"}], "usage": None})
        if plan.usage and "stream_options" in body:
            prompt = len(body["prompt"].split()) + 1
            cached = {"cached_tokens": plan.cached}
            counts = {"prompt_tokens": prompt, "completion_tokens": tokens}
            events.append({"choices": [], "usage": {**counts, "prompt_tokens_details": cached}})
        data = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
        self.answer(200, b": keepalive 1/2\n\n", *data, b"data: [DONE]\n\n")

    def answer(self, status, *parts):
        self.send_response(status)
        self.end_headers()
        for part in parts:  # each in a packet of its own, as a stream
            self.wfile.write(part)
            self.wfile.flush()


@contextmanager
def serving(models=("tiny",), **plan):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.plan, server.models, server.bodies = SimpleNamespace(**{**NEW, **plan}), models, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def bench(url, folder, *words):
    quick = ["-p", "40", "-n", "8", "-r", "2", "--rounds", "2", "--min-window", "0.02"]
    quiet = ["--cooldown", "0", "--power", "none", "--save", str(folder)]
    # The test machine may be busy.
    with patch("edge.profile.verdict.INVALID_RELATIVE_SD", math.inf):
        return main(["bench", "--server", url, *quick, *quiet, *words])


def test_a_server_is_measured_with_its_own_counts(tmp_path, capsys):
    with serving(models=("/home/someone/llama3.2:3b",)) as (server, url):
        assert bench(f"{url}/v1/", tmp_path) == 0
    (path,) = tmp_path.glob("*-llama3.2-3b.json")
    measured = read(path)
    (found,) = measured.rows
    assert (found.artefact, found.engine, found.framework) == ("llama3.2:3b", "server", "HTTP")
    assert found.workload == Workload(40, 8, joint=True)
    assert found.decode_tok_s.n == found.ttft_s.n == 2
    assert {trial.prompt_tokens for trial in found.trials} == {40}
    assert {count for trial in found.trials for count in trial.pass_tokens} == {8}
    assert max(len(trial.passes) for trial in found.counted) > 1
    assert (found.peak_memory_bytes, found.load_s, found.bytes_per_token) == (None, None, None)
    assert "through HTTP" in measured.method.decode_rate
    text = path.read_text()
    assert "127.0.0.1" not in text and str(server.server_port) not in text
    assert not check([path], names=()).faults
    assert "HTTP (server)" in capsys.readouterr().out
    prompts = [body["prompt"] for body in server.bodies[1:]]
    assert len(set(prompts)) == len(prompts)
    assert all(body["ignore_eos"] and not body["cache_prompt"] for body in server.bodies)


@pytest.mark.parametrize(
    ("plan", "tokens", "warning"),
    [
        ({}, 8, ""),
        ({"tokens": 5}, 5, ""),
        ({"cached": 30}, 8, "took up to 30 of 40 prompt tokens from its cache"),
        ({"refuses": ["ignore_eos"]}, 8, ""),
        ({"refuses": ["ignore_eos", "stream_options"]}, 8, ""),
        ({"usage": False, "tokens": 5}, 5, ""),
    ],
)
def test_tokens_cache_and_missing_counts(plan, tokens, warning):
    with serving(**plan) as (_, url):
        served = ServedTrials(Client(url, "tiny"), Workload(40, 8, joint=True))
        served.fit_prompt()
        trial = served.run(0.0, is_warmup=False)
    has_usage = plan.get("usage", True) and "stream_options" not in plan.get("refuses", ())
    assert trial.pass_tokens == [tokens]
    assert (trial.prompt_tokens, trial.prefill_tok_s is None) == (40 * has_usage, not has_usage)
    assert warning in "; ".join(served.warnings()) and bool(warning) == bool(served.warnings())
    remarks = served.facts("local server").remarks
    assert any("no token counts" in remark for remark in remarks) == (not has_usage)


CHUNK = b'data: {"choices": [{"text": "a", "finish_reason": null}]}\n\n'
LAST = b'data: {"choices": [{"text": "", "finish_reason": "stop"}]}\n\n'


@pytest.mark.parametrize(
    ("status", "say", "message"),
    [
        (404, b"Not Found", "/v1/completions with status 404 .Not Found.; check --server and --mo"),
        (404, b'{"error": "no model x on 127.0.0.1"}', "404 .no model x on HOST.;"),
        (500, b'{"error": {"message": "out of memory."}}', "500 .out of memory.;"),
        (200, CHUNK, "stream ended in the middle, after 1 chunks"),
        (200, CHUNK + b'data: {"error": {"message": "slot lost"}}\n\n', "an error .slot lost."),
        (200, b'{"error": "busy"}', "reports an error .busy."),
        (200, b"data: {1}\n\n", "invalid event .{1}."),
        (200, b'data: {"usage": {"prompt_tokens": -1}}\n\n', "invalid event"),
        (200, b"data: []\n\n", r"invalid event .\[\]."),
        (200, b"<html>", "after 0 chunks"),
        (200, LAST, "at most one token in 8 requests"),
    ],
)
def test_a_wrong_answer_is_one_sentence(status, say, message):
    with serving(status=status, say=say) as (_, url), pytest.raises(EdgeError, match=message):
        ServedTrials(Client(url, "tiny"), Workload(40, 8), words=9).run(0.0, is_warmup=False)


def test_a_silent_server_and_one_that_is_away():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EdgeError, match=r"sent nothing for 0.05 s"):
            Client(url, "tiny", silence_s=0.05).complete("a", 2)
    with pytest.raises(EdgeError, match=r"connection to the server failed \(.*refused"):
        Client(url, "tiny").complete("a", 2)


def test_a_server_that_stops_early_is_a_warning(tmp_path):
    with serving(tokens=5) as (_, url):
        assert bench(url, tmp_path) == 0
    (found,) = read(*tmp_path.glob("*.json")).rows
    assert found.verdict == "WARN" and "stopped early, at 5 of 8 tokens" in str(found.reasons)


@pytest.mark.parametrize(
    ("models", "words", "message"),
    [
        (["a", "b"], [], "lists 2 models; choose with --model: a, b."),
        ([], [], "lists no model; name one with --model"),
        (["a"], ["-d", "8", "--kv-bits", "8"], "leave out -d, --kv-bits"),
        (["a"], ["demo2"], "leave out MODEL"),
        (["a"], ["-n", "8,9"], "as many lengths to -p as to -n"),
        (["a"], ["--server", "localhost:1"], "'localhost:1' is not the address of a server"),
    ],
)
def test_arguments_that_cannot_be_measured(models, words, message, tmp_path, capsys):
    with serving(models=models) as (_, url):
        assert bench(url, tmp_path, *words) == 1
    assert message in capsys.readouterr().err


def test_addresses_names_and_workloads():
    assert server_url("https://box:1/base/v1/") == "https://box:1/base"
    for wrong in ("ftp://box", "http://", "http://u:p@box", "http://box?q", "http://b:x"):
        with pytest.raises(EdgeError, match="is not the address"):
            server_url(wrong)
    assert [is_local(url) for url in ("http://localhost:1", "http://[::1]")] == [True, True]
    assert not is_local("http://192.0.2.1:80")
    args, away = SimpleNamespace(server="x", power="rapl"), ModelInfo("m", REMOTE)
    target = Target(RECIPES["mlx-int4"], "x", ("server",), away)
    assert "another machine" in _new_meter(args, [target])().unavailable
    assert short_name("C:\\models\\a b.gguf") == "a-b.gguf"
    assert served_workloads([8, 9], [4], []) == [Workload(8, 4, joint=True), Workload(9)]


def test_energy_leaves_out_the_time_between_requests():
    trial = profile(row(STEADY)).rows[0].trials[0]
    spans = {"pass_begin_ns": [10**9, 5 * 10**9], "pass_end_ns": [2 * 10**9, 7 * 10**9]}
    trial = type(trial)(warmup=False, pass_tokens=[11, 21], **spans)
    samples = [Sample(s * 10**9, (s + 1) * 10**9, {"CPU": float(s)}) for s in range(9)]
    energy = with_energy(trial, samples, "fake").decode_energy
    assert (energy.window_s, energy.tokens, energy.total_j) == (3.0, 30, 1.0 + 5.0 + 6.0)
    assert (energy.coverage, energy.missing) == (1.0, None)


def test_a_comparison_with_a_server_says_what_differs():
    joint = {"workload": {"prompt": 512, "generate": 128, "joint": True}}
    served = row(STEADY, artefact="llama", engine="server", framework="HTTP", **joint)
    other = profile(served, model={"name": "llama"}, method={"decode_rate": "through HTTP"})
    found = compare(profile(row(STEADY, **joint)), other, 0.02)
    assert found.rows[0].engine == "mlx (A) and server (B)"
    remarks = "; ".join(found.remarks)
    for part in ("B was measured through HTTP", "include tokenising", "demo in A, llama in B"):
        assert part in remarks
    with pytest.raises(EdgeError, match="beside a server's -p P -n N: -pg P,N"):
        compare(profile(row(STEADY)), other, 0.02)


def wait_for_port(server, port):
    for _ in range(600):
        with suppress(subprocess.TimeoutExpired):
            pytest.fail(f"the server ended with {server.wait(0.1)}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
    pytest.fail("the server did not open its port within a minute")


@pytest.mark.parametrize(
    ("module", "artefact", "words", "has_counts"),
    [
        ("mlx_lm.server", "mlx-fp16", ["--model", "default_model"], True),
        ("llama_cpp.server", "gguf-f16.gguf", [], False),
    ],
)
def test_a_real_server_is_measured(demo_out, tmp_path, module, artefact, words, has_counts):
    if module == "llama_cpp.server":
        pytest.importorskip("starlette_context", reason="needs llama-cpp-python[server]")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", module, "--model", str(demo_out / artefact)]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log)
        try:
            wait_for_port(server, port)
            assert bench(f"http://localhost:{port}", tmp_path, *words) == 0
        finally:
            server.kill()
            server.wait()
    (found,) = read(*tmp_path.glob("*.json")).rows
    assert found.counts and found.decode_tok_s.median > 0
    assert (found.prefill_tok_s is not None) is has_counts
    if has_counts:
        assert all(abs(trial.prompt_tokens - 40) <= 8 for trial in found.trials)
