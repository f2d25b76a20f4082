"""OpenAI's dialect as editors and the PyPI client speak it, on both engines."""

import json
import math
from unittest.mock import patch

import pytest

pytest.importorskip("uvicorn")

from edge.cli.main import main
from edge.profile.profile import read
from tests.serve.test_llama_cpp import LINE, PREFIX, SUFFIX, vim

CODE = "    for i in range(10):\n        print("
FREE = {"prompt": CODE, "max_tokens": 12, "temperature": 0}
# The demo says nothing unless it is drawn from all tokens.
SAID = {
    "messages": [{"role": "user", "content": "Say hi."}],
    "max_tokens": 12,
    "temperature": 3,
    "top_k": 0,
    "top_p": 1,
    "min_p": 0,
    "seed": 1,
}
# Zed's edit prediction, with the prompt format star_coder.
ZED = (
    b'{"model":"demo","prompt":"<fim_prefix>def add(a, b):\\n    return <fim_suffix>\\n'
    b'<fim_middle>","max_tokens":24,"stop":["<fim_prefix>","<fim_suffix>","<fim_middle>",'
    b'"<file_sep>"],"temperature":null}'
)


def texts(answer):
    return [choice["text"] for choice in answer["choices"]]


def test_zed_gets_each_field_it_needs(client):
    status, _, data = client.send("/v1/completions", ZED)
    answer = json.loads(data)
    assert status == 200 and answer["object"] == "text_completion" and answer["id"]
    assert type(answer["created"]) is int and answer["model"] == "demo"
    assert texts(answer) == texts(json.loads(client.send("/v1/completions", ZED)[2]))
    usage = answer["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert "energy_j" not in usage


def test_a_suffix_is_an_infill(client):
    body = {"prompt": PREFIX + LINE, "suffix": SUFFIX, "max_tokens": 24}
    whole = client.json("/infill", vim(response_fields=None))["content"]
    assert texts(client.json("/v1/completions", body)) == [whole]
    # minuet streams, Continue asks Mistral's route.
    chunks = client.events("/v1/completions", {**body, "stream": True})
    assert "".join(text for chunk in chunks for text in texts(chunk)) == whole
    chunks = client.events("/v1/fim/completions", {**body, "stream": True})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == whole
    several, again = (
        client.json("/v1/completions", {**body, "n": 3, "seed": 1})["choices"] for _ in range(2)
    )
    assert several[0]["text"] == whole and several == again
    assert [choice["index"] for choice in several] == [0, 1, 2]


def test_a_prompt_can_be_a_list_of_one_or_ids(client):
    expected = texts(client.json("/v1/completions", FREE))
    ids = client.json("/tokenize", {"content": CODE})["tokens"]
    for prompt in ([CODE], ids, [ids]):
        assert texts(client.json("/v1/completions", {**FREE, "prompt": prompt})) == expected
    assert client.json("/v1/completions", {"prompt": CODE})["usage"]["completion_tokens"] <= 16


def test_ends(client):
    whole = client.json("/v1/completions", FREE)
    assert whole["choices"][0]["finish_reason"] == "length"
    word = texts(whole)[0][4:7]
    choice = client.json("/v1/completions", {**FREE, "stop": word})["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (texts(whole)[0].partition(word)[0], "stop")


def test_log_probabilities(client):
    choice = client.json("/v1/completions", {**FREE, "logprobs": 3})["choices"][0]
    found = choice["logprobs"]
    assert "".join(found["tokens"]) == choice["text"]
    best = [max(top.values()) for top in found["top_logprobs"]]
    assert found["token_logprobs"] == best and max(best) <= 0
    assert all(len(top) == 3 for top in found["top_logprobs"])
    chunks = client.events("/v1/completions", {**FREE, "logprobs": 0, "stream": True})
    pieces = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    streamed = [value for piece in pieces if piece for value in piece["token_logprobs"]]
    assert streamed == pytest.approx(best, abs=1e-3)
    said = client.json("/v1/chat/completions", {**SAID, "logprobs": True, "top_logprobs": 2})
    choice = said["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert (
        bytes(byte for token in tokens for byte in token["bytes"]).decode()
        == (choice["message"]["content"])
    )
    assert [len(token["top_logprobs"]) for token in tokens] == [2] * len(tokens)


def test_a_chat_streams_its_role_once_and_its_usage_if_asked(client):
    whole = client.json("/v1/chat/completions", {**SAID, "n": 2})
    assert whole["object"] == "chat.completion"
    body = {**SAID, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.events("/v1/chat/completions", body)
    for choice in whole["choices"]:
        said = [chunk["choices"][0] for chunk in chunks]
        said = [each for each in said if each["index"] == choice["index"]]
        assert [each["delta"].get("role") for each in said[:2]] == ["assistant", None]
        text = "".join(each["delta"].get("content", "") for each in said)
        assert choice["message"] == {"role": "assistant", "content": text} and text
        ends = [each["finish_reason"] for each in said]
        assert ends == [None] * (len(ends) - 1) + [choice["finish_reason"]]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    _, _, data = client.send("/v1/chat/completions", {**SAID, "stream": True})
    assert data.endswith(b"data: [DONE]\n\n") and b'"usage"' not in data


def test_llama_vim_s_instruction_is_prepared_without_an_answer(client):
    # Sent while the user types the instruction; the answer is not read.
    warm_up = {"id_slot": 0, "samplers": [], "n_predict": 0, "cache_prompt": True}
    body = {"messages": SAID["messages"], **warm_up, "stream": False, "response_fields": [""]}
    usage = client.json("/v1/chat/completions", body)["usage"]
    assert usage["completion_tokens"] == 0
    again = client.json("/v1/chat/completions", body)["usage"]["prompt_tokens_details"]
    assert again["cached_tokens"] == usage["prompt_tokens"] - 1


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        (
            "/v1/completions",
            {"model": "gpt-5"},
            404,
            "the model 'gpt-5' is not here; ask for 'demo'",
        ),
        ("/v1/models/gpt-5", None, 404, "the model 'gpt-5' is not here"),
        ("/v1/completions", {"prompt": ["a", "b"]}, 400, "several prompts"),
        ("/v1/completions", {"prompt": [1, 2], "suffix": "x"}, 400, "a suffix needs a prompt of"),
        ("/v1/completions", {"prompt": "x", "echo": True}, 400, "echo is not supported"),
        ("/v1/completions", {"prompt": "x", "logprobs": 99}, 400, "`$.logprobs`"),
        ("/v1/completions", {"prompt": "x " * 1500}, 400, "and the model's context ends at 1024"),
        ("/v1/chat/completions", {}, 400, "messages has no message of the user"),
        ("/v1/chat/completions", {**SAID, "tools": [{}]}, 400, "tools is not supported"),
        (
            "/v1/chat/completions",
            {**SAID, "response_format": {"type": "json_object"}},
            400,
            "`$.response_format.type`",
        ),
    ],
)
def test_what_is_refused(client, path, body, status, sentence):
    found = client.refused(path, body)
    assert found[0] == status and sentence in found[1], found
    streamed = client.refused(path, body and {**body, "stream": True})
    assert streamed == found


def test_our_own_benchmark_measures_the_server(client, tmp_path):
    url = f"http://127.0.0.1:{client.port}"
    words = ["-p", "40", "-n", "8", "-r", "2", "--min-window", "0.02", "--cooldown", "0"]
    # The test machine may be busy.
    with patch("edge.profile.verdict.INVALID_RELATIVE_SD", math.inf):
        more = ["--power", "none", "--save", str(tmp_path)]
        assert main(["bench", "--server", url, *words, *more]) == 0
    (path,) = tmp_path.glob("*.json")
    (row,) = read(path).rows
    assert {count for trial in row.trials for count in trial.pass_tokens} == {8}


@pytest.fixture
def openai(client):
    """The client of PyPI."""
    module = pytest.importorskip("openai", reason="openai is not installed")
    with module.OpenAI(base_url=f"http://127.0.0.1:{client.port}/v1", api_key="none") as made:
        yield made


def test_the_pypi_client(openai, client):
    (model,) = openai.models.list()
    assert openai.models.retrieve(model.id).owned_by == "edge"
    more = {name: SAID[name] for name in ("top_k", "min_p")}
    asked = {name: SAID[name] for name in SAID if name not in more}
    asked = {**asked, "model": model.id, "extra_body": more}
    said = openai.chat.completions.create(**asked)
    streamed = openai.chat.completions.create(stream=True, **asked)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == said.choices[0].message.content
    free = openai.completions.create(model=model.id, **FREE)
    hole = openai.completions.create(model=model.id, prompt=PREFIX + LINE, suffix=SUFFIX)
    assert free.usage.completion_tokens == 12 and free.choices[0].text and hole.choices[0].text
    for raised, body in (("NotFoundError", {"model": "x"}), ("BadRequestError", {"n": 99})):
        with pytest.raises(Exception, match="not") as error:
            openai.completions.create(**{"model": model.id, **FREE, **body})
        assert type(error.value).__name__ == raised
    # A stream that is closed frees the server.
    body = {**FREE, "max_tokens": 900}
    with openai.completions.create(model=model.id, stream=True, **body) as stream:
        next(iter(stream))
    while client.queue.counts != (0, 0):
        client.json("/health")


def test_litellm(client, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it is fetched otherwise
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")
    url = f"http://127.0.0.1:{client.port}"
    asked = {"api_base": f"{url}/v1", "api_key": "none", "max_tokens": 24}
    body = {"model": "text-completion-openai/demo", "prompt": PREFIX + LINE, "suffix": SUFFIX}
    whole = litellm.text_completion(**body, **asked)
    parts = litellm.text_completion(**body, **asked, stream=True)
    assert whole.choices[0].text
    assert "".join(part.choices[0].text or "" for part in parts) == whole.choices[0].text
    asked |= {"messages": SAID["messages"], "temperature": SAID["temperature"], "seed": 1}
    for model, base in (("openai/demo", f"{url}/v1"), ("ollama_chat/demo", url)):
        asked |= {"model": model, "api_base": base}
        said = litellm.completion(**asked)
        parts = litellm.completion(**asked, stream=True)
        text = "".join(part.choices[0].delta.content or "" for part in parts)
        assert text == (said.choices[0].message.content or "")
    # A stream that is closed frees the server.
    asked |= {"model": "openai/demo", "api_base": f"{url}/v1", "max_tokens": 900}
    parts = litellm.completion(**asked, ignore_eos=True, stream=True)
    next(parts)
    parts.completion_stream.close()
    while client.queue.counts != (0, 0):
        client.json("/health")
