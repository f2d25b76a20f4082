"""Ollama's dialect as Continue, Zed and the PyPI client speak it, on both engines."""

import json
import re

import pytest

pytest.importorskip("uvicorn")

from tests.serve.test_llama_cpp import LINE, PREFIX, SUFFIX, vim
from tests.serve.test_openai import CODE, SAID

FREE = {
    "model": "demo",
    "prompt": CODE,
    "raw": True,
    "options": {"num_predict": 12, "temperature": 0},
}
HOT = {name: SAID[name] for name in ("temperature", "top_k", "top_p", "min_p", "seed")}
TALK = {"messages": SAID["messages"], "options": {**HOT, "num_predict": 12}}


def lines(client, path, body):
    """The values of a stream of lines."""
    status, headers, data = client.send(path, body)
    assert (status, headers["content-type"]) == (200, "application/x-ndjson"), data
    return [json.loads(line) for line in data.splitlines()]


def test_continue_learns_that_the_model_fills_in(client):
    shown = client.json("/api/show", {"name": "demo"})
    assert ".Suffix" in shown["template"] and "insert" in shown["capabilities"]
    assert re.match(r"num_ctx +1024$", shown["parameters"])
    family = shown["model_info"]["general.architecture"]
    assert family == "stablelm" and shown["model_info"][f"{family}.context_length"] == 1024


def test_zed_finds_the_model_and_what_it_is(client):
    (model,) = client.json("/api/tags")["models"]
    assert model["name"] == "demo" and model["size"] > 1e6 and len(model["digest"]) == 64
    details = model["details"]
    assert re.fullmatch(r"\d\.\d\dM", details["parameter_size"])
    assert details["family"] == "stablelm"
    assert (details["format"], details["quantization_level"]) in {("mlx", "FP16"), ("gguf", "FP32")}
    (running,) = client.json("/api/ps")["models"]
    assert running["digest"] == model["digest"] and running["context_length"] == 1024
    assert client.json("/api/version")["version"] and client.send("/", method="HEAD")[0] == 200


def test_a_suffix_is_an_infill(client):
    body = {"model": "demo:latest", "prompt": PREFIX + LINE, "suffix": SUFFIX, "raw": False,
            "keep_alive": "30m", "options": {"num_predict": 24, "stop": None}}  # fmt: skip
    expected = client.json("/infill", vim(response_fields=None))["content"]
    whole = client.json("/api/generate", {**body, "stream": False})
    assert whole["response"] == expected and whole["done"]
    *chunks, last = lines(client, "/api/generate", body)
    assert "".join(chunk["response"] for chunk in chunks) == expected
    assert not any(chunk["done"] for chunk in chunks)
    for name in ("done", "done_reason", "prompt_eval_count", "eval_count"):
        assert last[name] == whole[name]
    assert 0 < last["eval_duration"] < last["total_duration"]


def test_raw_text_chats_and_ends(client):
    expected = client.json("/completion", {"prompt": CODE, "n_predict": 12, "temperature": 0})
    whole = client.json("/api/generate", {**FREE, "stream": False})
    assert (whole["response"], whole["done_reason"]) == (expected["content"], "length")
    word = whole["response"][4:7]
    body = {**FREE, "stream": False, "options": {**FREE["options"], "stop": [word]}}
    stopped = client.json("/api/generate", body)
    assert (stopped["response"], stopped["done_reason"]) == (
        whole["response"].partition(word)[0], "stop"
    )  # fmt: skip
    said = client.json("/api/chat", {**TALK, "stream": False})["message"]
    assert said["role"] == "assistant" and said["content"]
    *chunks, _ = lines(client, "/api/chat", TALK)
    assert "".join(chunk["message"]["content"] for chunk in chunks) == said["content"]
    # Without `raw` a prompt is put into the chat template.
    prompt = {"prompt": SAID["messages"][0]["content"], "options": TALK["options"]}
    assert client.json("/api/generate", {**prompt, "stream": False})["response"] == said["content"]


def test_loading_and_unloading_are_answered_at_once(client):
    for path in ("/api/generate", "/api/chat"):
        answer = client.json(path, {"model": "demo", "keep_alive": 0})
        assert (answer["done"], answer["done_reason"]) == (True, "load")


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/api/generate", {"model": "llama3"}, 404, "the model 'llama3' is not here"),
        ("/api/show", {"model": "llama3"}, 404, "the model 'llama3' is not here"),
        ("/api/chat", {**TALK, "tools": [{}]}, 400, "tools is not supported"),
        ("/api/chat", {"messages": [{"role": "system"}]}, 400, "no message of the user"),
        ("/api/generate", {**FREE, "format": "json"}, 400, "format is not supported"),
        ("/api/generate", {**FREE, "options": {"top_p": -1}}, 400, "top_p is -1"),
        ("/api/generate", {**FREE, "prompt": "x " * 1500}, 400, "context ends at 1024"),
        ("/api/nothing", {}, 404, "this path does not exist"),
    ],
)
def test_what_is_refused(client, path, body, status, sentence):
    _, _, data = client.send(path, body)
    found = client.refused(path, body)
    assert found[0] == status and sentence in found[1], found
    assert json.loads(data) == {"error": found[1]}


def test_the_pypi_client(client):
    module = pytest.importorskip("ollama", reason="ollama is not installed")
    ollama = module.Client(f"http://127.0.0.1:{client.port}")
    (model,) = ollama.list().models
    assert "insert" in ollama.show(model.model).capabilities
    assert ollama.ps().models[0].model == model.model
    whole = ollama.generate(model.model, PREFIX + LINE, suffix=SUFFIX, options={"num_predict": 24})
    body = {"suffix": SUFFIX, "options": {"num_predict": 24}, "stream": True}
    streamed = ollama.generate(model.model, PREFIX + LINE, **body)
    assert "".join(chunk.response for chunk in streamed) == whole.response
    said = ollama.chat(model.model, TALK["messages"], options=TALK["options"])
    streamed = ollama.chat(model.model, TALK["messages"], options=TALK["options"], stream=True)
    assert "".join(chunk.message.content for chunk in streamed) == said.message.content
    with pytest.raises(module.ResponseError, match="is not here"):
        ollama.generate("llama3", "x")
    # A stream that is closed frees the server.
    body = {"raw": True, "options": {"num_predict": 900, "ignore_eos": True}, "stream": True}
    stream = ollama.generate(model.model, CODE, **body)
    next(stream)
    stream.close()
    while client.queue.counts != (0, 0):
        client.json("/health")
