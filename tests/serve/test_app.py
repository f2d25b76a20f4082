"""Who may ask what: bad input, limits, keys, hosts, websites, and the end by Ctrl-C."""

import copy
import json
import os
import random
import signal
import socket
import subprocess
import sys

import pytest

from edge.cli import serve
from edge.cli.main import main
from edge.cli.options.serve import parser
from edge.errors import EdgeError
from edge.serve import app, http
from edge.serve.app import Access
from edge.serve.editors import blocks
from edge.serve.energy import EnergyMeter
from tests.serve.scripted import Steady

CASES = int(os.environ.get("EDGE_FUZZ_CASES", "300"))
SEED = int(os.environ.get("EDGE_FUZZ_SEED", "0"))
SECRET = "my secret prompt"


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/infill", b"{", 400, "the body is not JSON"),
        ("/infill", b"", 400, "the body is not JSON"),
        ("/infill", b"[]", 400, "not a JSON object"),
        ("/infill", b'{"prompt":"' + b"\xff" + b'"}', 400, "the body is not JSON"),
        ("/infill", b'{"prompt":"\\ud800"}', 400, "the body is not JSON"),
        ("/infill", b'{"temperature":NaN}', 400, "the body is not JSON"),
        ("/infill", b'{"temperature":1e999}', 400, "Number out of range"),
        ("/infill", b"[" * 100_000, 400, "nested too deeply"),
        ("/infill", {"prompt": 5}, 400, "Expected `str`, got `int` - at `$.prompt`"),
        ("/infill", {"n_predict": -3}, 400, "`$.n_predict`"),
        ("/infill", {"seed": 2**70}, 400, "the sampling value seed is"),
        ("/infill", {"n_cmpl": 17}, 400, "`$.n_cmpl`"),
        ("/infill", {"top_p": -1}, 400, "top_p is -1"),
        ("/infill", {"min_p": 2}, 400, "min_p is 2"),
        ("/infill", {"temperature": -1}, 400, "temperature is -1"),
        ("/infill", {"stop": ["x"] * 65}, 400, "stop has more than 64"),
        ("/completion", {"prompt": "x", "grammar": "root"}, 400, "grammar"),
        ("/completion", {"prompt": "x " * 1500}, 400, "and the model's context ends at 1024"),
        ("/detokenize", {"tokens": [-1]}, 400, "`$.tokens[0]`"),
        ("/detokenize", {"tokens": [5, 4096]}, 400, "token 4096 does not exist; the vocabulary"),
        ("/apply-template", {"messages": [{"role": "x"}]}, 400, "`$.messages[0].role`"),
        ("/chat/completion", {}, 404, "those most like it are /v1/chat/completions, "),
        ("/infill", None, 405, "GET is not allowed here"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(quick, capfd, path, body, status, sentence):
    asked = len(quick.queue.engine.model.source.asked)
    found = quick.refused(path, body)
    assert found[0] == status and sentence in found[1], found
    assert "Traceback" not in capfd.readouterr().err
    assert len(quick.queue.engine.model.source.asked) == asked


def test_a_body_that_is_too_large_or_too_slow(quick, monkeypatch):
    monkeypatch.setattr(http, "MOST_BODY_BYTES", 1 << 20)
    large = b"x" * ((1 << 20) + 1)
    assert quick.refused("/infill", large) == (
        413, "the body is larger than 1 MiB; send less text."
    )  # fmt: skip
    head = b"POST /infill HTTP/1.1\r\nHost: localhost\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n100001\r\n" + large
    assert b" 413 " in raw(quick, chunked)
    monkeypatch.setattr(http, "BODY_S", 0.01)
    assert b" 408 " in raw(quick, head + b"Content-Length: 9\r\n\r\n{")


def raw(client, data):
    """The first line that bytes are answered with."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall(data)
        return connection.makefile("rb").readline()


def test_headers_that_do_not_come_close_the_connection(quick, monkeypatch):
    monkeypatch.setattr(app, "HEADERS_S", 0.01)
    assert raw(quick, b"GET /health HTTP/1.1\r\nHo") == b""
    assert raw(quick, b"") == b""
    assert b" 400 " in raw(quick, b"nonsense\r\n\r\n")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8012"}, 200),
        ({"Host": "LOCALHOST"}, 200),
        ({"Host": "[::1]:99"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8012"}, 403),
        ({"Origin": "https://a.example"}, 200),
        ({"Origin": "https://b.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_hosts_and_websites(quick, headers, status):
    found, answered, _ = quick.send("/health", **headers)
    assert found == status
    allowed = answered["access-control-allow-origin"]
    assert allowed == (headers.get("Origin") if status == 200 else None)


def test_no_website_may_ask_by_default_but_other_names_can_be_allowed(serving, scripted):
    with serving(scripted, allowed_hosts=["Mac.local"], key="sesame") as client:
        key = {"Authorization": "Bearer sesame"}
        assert client.send("/slots", **key)[0] == 200
        assert client.send("/slots", Host="mac.local:1", **key)[0] == 200
        assert client.send("/slots", Origin="https://a.example", **key)[0] == 403
        assert client.send("/health")[0] == 200
        for wrong in ({}, {"Authorization": "Bearer "}, {"Authorization": "Basic sesame"}):
            status, headers, _ = client.send("/infill", {}, **wrong)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(
    ("bound", "host", "is_own"),
    [
        ("0.0.0.0", "192.168.1.7:8012", True),
        ("0.0.0.0", "evil.example", False),
        ("192.168.1.7", "192.168.1.7:8012", True),
        ("192.168.1.7", "localhost", False),
        ("::", "[fe80::1]:8012", True),
    ],
)
def test_names_of_an_open_address(bound, host, is_own):
    access = Access(bound, 8012, key="k")
    access.check()
    headers = app.Headers({"host": host, "authorization": "Bearer k"})
    assert (access.refusal(headers, "/slots") is None) == is_own
    with pytest.raises(EdgeError, match="give a key with --api-key FILE"):
        Access(bound, 8012).check()


def test_a_full_queue_says_when_to_come_back(serving, scripted):
    with serving(scripted, most_waiting=1) as client:
        source = client.queue.engine.model.source
        source.armed = True
        body = json.dumps({"prompt": "x", "n_predict": 500}).encode()
        head = f"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        sockets = []
        for counts in ((1, 0), (1, 1)):
            sockets.append(socket.create_connection(("127.0.0.1", client.port)))
            sockets[-1].sendall(head.encode() + b"\r\n\r\n" + body)
            while client.queue.counts != counts:
                assert client.json("/health")["status"] == "ok"
        status, headers, data = client.send("/completion", body)
        assert (status, headers["retry-after"]) == (503, "1")
        assert "1 requests wait already" in json.loads(data)["error"]["message"]
        # A client that leaves frees its place, whether it waits or is answered.
        sockets[1].close()
        while client.queue.counts[1]:
            client.json("/health")
        sockets[0].close()
        assert source.end() < 500
        source.armed = False
        assert client.json("/completion", {"prompt": "x", "n_predict": 3})["content"]


@pytest.mark.parametrize("log_prompts", [False, True])
def test_the_log_has_prompts_only_if_asked(serving, scripted, caplog, log_prompts, monkeypatch):
    caplog.set_level("INFO", "edge.serve")
    with serving(scripted, log_prompts=log_prompts) as client:
        source = client.queue.engine.model.source
        client.json("/completion", {"prompt": SECRET, "n_predict": 2})
        client.events("/completion", {"prompt": SECRET, "n_predict": 2, "stream": True})
        client.refused("/completion", {"prompt": SECRET, "seed": "x"})

        def fail(*args, **how):
            raise ValueError(SECRET)

        monkeypatch.setattr(source, "generate", fail)
        expected = (500, "edge failed; its log says where.")
        assert client.refused("/completion", {"prompt": SECRET}) == expected
    assert caplog.text.count(SECRET) == 4 * log_prompts
    assert "ValueError in " in caplog.text and "POST /completion 400" in caplog.text
    assert "Traceback" not in caplog.text


def test_answers_carry_their_energy(serving, scripted):
    with serving(scripted, EnergyMeter(Steady(5.0), "rapl")) as client:
        answers = client.json("/completion", {"prompt": "x", "n_predict": 3, "n_cmpl": 2})
        for answer in answers:
            timings, usage = answer["timings"], answer["usage"]
            spent_j = timings["prompt_energy_j"], timings["predicted_energy_j"]
            seconds = timings["prompt_ms"] / 1e3, timings["predicted_ms"] / 1e3
            assert spent_j == pytest.approx([5 * each for each in seconds])
            assert usage["energy_j"] == pytest.approx(sum(spent_j))
            assert usage["energy_boundary"] == timings["energy_boundary"] == "CPU"
        assert client.json("/health")["energy_boundary"] == "CPU"
        metrics = client.metrics()
        name = "edge:energy_joules_total"
        spent_j = [metrics[f'{name}{{boundary="CPU",phase="{p}"}}'] for p in ("prefill", "decode")]
        assert sum(spent_j) == pytest.approx(sum(each["usage"]["energy_j"] for each in answers))
        said = client.json("/v1/completions", {"prompt": "x", "n": 2})["usage"]
        last = client.json("/api/generate", {"prompt": "x", "raw": True, "stream": False})
        for fields in (said, last):
            assert fields["energy_j"] > 0 and fields["energy_boundary"] == "CPU"


def test_metrics_count_finished_answers_and_who_waits(serving, scripted):
    with serving(scripted) as client:
        answers = [client.json("/completion", {"prompt": "x", "n_predict": n}) for n in (3, 5)]
        client.json("/infill", {"n_predict": 0})
        metrics = client.metrics()
        assert metrics["llamacpp:tokens_predicted_total"] == 8
        evaluated = sum(answer["tokens_evaluated"] for answer in answers)
        assert metrics["llamacpp:prompt_tokens_total"] > evaluated
        assert metrics['edge:answers_total{end="length"}'] == 3
        assert metrics["edge:time_to_first_token_seconds_count"] == 3
        assert metrics["edge:time_per_token_seconds_count"] == 2
        assert metrics["llamacpp:requests_processing"] == 0
        assert metrics["llamacpp:requests_deferred"] == 0
        seconds = answers[1]["timings"]["predicted_per_second"]
        assert metrics["llamacpp:predicted_tokens_seconds"] == pytest.approx(seconds)
        assert not [name for name in metrics if "energy" in name or "_created" in name]


SAMPLES = [
    {"input_prefix": "a", "input_suffix": "b", "prompt": "c", "n_predict": 3, "top_p": 0.9,
     "input_extra": [{"text": "x", "time": [1, 2]}], "stop": ["z"], "response_fields": ["content"]},
    {"prompt": ["x", 5], "n_predict": 3, "temperature": 0.5, "stream": True, "seed": 1,
     "n_probs": 2, "response_fields": ["generation_settings/stop", "timings"], "n_cmpl": 2},
    {"content": "text", "add_special": True, "tokens": [1, 2], "parse_special": False},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "max_tokens": 3,
     "top_logprobs": 0, "response_format": {"type": "text"}, "logit_bias": {}},
    {"prompt": [[5, 6]], "logprobs": 1, "max_tokens": 3, "n": 2, "stop": "z", "stream": True,
     "stream_options": {"include_usage": True}, "seed": 3},
    {"model": "demo", "prompt": "x", "suffix": "y", "raw": True, "system": "z", "keep_alive": -1,
     "messages": [{"role": "user", "content": "x"}], "options": {"num_predict": 3, "stop": ["q"]}},
]  # fmt: skip
ODD = [None, True, -1, 2**63, 1e308, "", "\0", "é" * 300, [], {}, [[]], [None], {"a": []}, 1e-320]
ROUTES = [(method, path.replace("{name:path}", "demo")) for method, path, _ in app.ROUTES]


def damaged(chance):
    """A body with odd values in places of a valid one, or with odd bytes."""
    body = json.loads(json.dumps(chance.choice(SAMPLES)))
    for _ in range(chance.randrange(4)):
        place = body
        while isinstance(place, (dict, list)) and place:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if chance.random() < 0.6 or not isinstance(place[key], (dict, list)):
                place[key] = copy.deepcopy(chance.choice(ODD))
                break
            place = place[key]
    data = bytearray(json.dumps(body).encode())
    for _ in range(chance.choice([0, 0, 1, 3])):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data[: chance.randrange(len(data))] if chance.random() < 0.1 else data)


def test_no_body_breaks_the_server(quick, capfd):
    chance = random.Random(SEED)
    statuses = set()
    for _ in range(CASES):
        (method, path), body = chance.choice(ROUTES), damaged(chance)
        status, _, data = quick.send(path, body, method)
        assert status in (200, 400, 404) and b"edge failed" not in data, (path, body, data)
        statuses.add(status)
    assert statuses >= {200, 400}
    assert quick.json("/health")["status"] == "ok"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(("times", "artefact"), [(1, "mlx-int4"), (1, None), (2, None)])
def test_ctrl_c_ends_after_the_running_answer_and_twice_at_once(times, artefact, demo_out):
    model = "demo" if artefact is None else str(demo_out / artefact)
    words = [sys.executable, "-m", "edge", "serve", model, "--port", "0", "--power", "none"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    url = process.stdout.readline().decode().split(" ")[0]
    for name in ("llama.vim", "llama.vscode", "Continue", "Zed", "minuet", "Ollama", "openai"):
        while not (line := process.stdout.readline()).startswith(name.encode()):
            assert line
    body = json.dumps({"prompt": "x = [1, 2,", "n_predict": 200, "stream": True}).encode()
    head = f"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        connection.sendall(head.encode() + body)
        stream = connection.makefile("rb")
        while not stream.readline().startswith(b"data: "):
            pass
        for _ in range(times):
            process.send_signal(signal.SIGINT)
        rest = stream.read()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert (b'"stop":true' in rest) or times == 2
    assert b"Traceback" not in err and b"ending; Ctrl-C again ends at once" in err


def test_the_key_is_that_of_the_file_or_of_the_environment(tmp_path, monkeypatch):
    (tmp_path / "key").write_text("of the file\n")
    monkeypatch.setenv("EDGE_API_KEY", "of the environment")
    for words, key in (
        (["--api-key", str(tmp_path / "key")], "of the file"),
        ([], "of the environment"),
    ):
        assert serve._key(parser().parse_args(words)) == key
    for has_key in (False, True):
        assert ("OLLAMA_API_KEY=KEY" in blocks("http://127.0.0.1:1", "m", has_key)) == has_key
    monkeypatch.delenv("EDGE_API_KEY")
    assert serve._key(parser().parse_args([])) is None


def test_what_cannot_be_served_is_one_line(capsys, tmp_path, monkeypatch, demo_out):
    (tmp_path / "empty").write_text("\n")
    monkeypatch.setenv("EDGE_API_KEY", "k")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, sentence in (
            (["--port", str(port)], f"127.0.0.1:{port} cannot be used (address already in use)"),
            (["--api-key", str(tmp_path / "empty")], "empty has no key of printable ASCII"),
            (["--host", "no.such.invalid"], "no.such.invalid:8012 cannot be used"),
            (["--parallel", "2", str(demo_out / "gguf-f16.gguf")], "--parallel is for MLX"),
        ):
            assert main(["serve", *words]) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert sentence in line
    monkeypatch.delenv("EDGE_API_KEY")
    assert main(["serve", "--host", "0.0.0.0"]) == 1
    assert "give a key with --api-key FILE" in capsys.readouterr().err
