"""llama.cpp's dialect as llama.vim and llama.vscode speak it, on both engines."""

import json
import re

import pytest

from edge.generate.decode import MlxSource
from edge.generate.fim import Completer

PREFIX, LINE = "import os\n\ndef f(path):\n", "    for key, value in d."
SUFFIX = "():\n    print(key, value)\n"
FIELDS = [
    "content", "timings/prompt_n", "timings/prompt_ms", "timings/prompt_per_second",
    "timings/predicted_n", "timings/predicted_ms", "truncated", "tokens_cached",
]  # fmt: skip
LOOP = ("    for i in range(10):", "\n        print(")
FREE = {"prompt": "".join(LOOP), "n_predict": 12, "temperature": 0}


def vim(line=LINE, **more):
    """The body that llama.vim sends, but for the time limit, too short for a busy machine."""
    return {
        "id_slot": 0,
        "input_prefix": PREFIX,
        "input_suffix": SUFFIX,
        "input_extra": [],
        "prompt": line,
        "n_predict": 24,
        "stop": [],
        "n_indent": 4,
        "top_k": 40,
        "top_p": 0.9,
        "samplers": ["top_k", "top_p", "infill"],
        "stream": False,
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 10**6,
        "response_fields": FIELDS,
        "model": "",
        **more,
    }


def test_llama_vim_gets_the_middle_of_edge_complete(client, demo):
    completer = Completer(MlxSource(demo.loaded[0]), demo.loaded[1])
    expected = completer.complete(PREFIX + LINE, SUFFIX, order="spm", max_tokens=24)
    status, _, raw = client.send("/infill", vim(), Authorization="Bearer ")
    assert status == 200 and re.match(rb"\s*{", raw) and re.search(rb'"content"\s*:"', raw)
    answer = json.loads(raw)
    assert list(answer) == FIELDS
    assert answer["content"] == expected.text
    assert answer["timings/predicted_n"] == expected.generated_tokens


def test_a_keystroke_computes_only_what_changed(client):
    warm_up = vim(n_predict=0, samplers=[], response_fields=[""])
    assert client.json("/infill", warm_up) == {}
    n = "timings/prompt_n"
    computed = [client.json("/infill", vim(LINE[: -end or None]))[n] for end in (0, 2, 1, 0)]
    assert max(computed) <= 3
    # What other files hold comes first: with another one nothing is left of the cache.
    extra = [{"text": "x = 1\n", "filename": "b.py", "time": [5, 1]}]
    assert client.json("/infill", vim(input_extra=extra))[n] > 20


def test_the_newest_file_is_nearest(client):
    seen = []
    source = client.queue.engine.model.source
    generate = source.generate
    source.generate = lambda ids, *more, **how: seen.append(ids) or generate(ids, *more, **how)
    try:
        for times in ([[9, 5], [9, 40]], [2.5, 7], [None, 3]):
            extra = [
                {"text": f"{name}\n", "time": time} for name, time in zip("ab", times, strict=True)
            ]
            client.json("/infill", vim(input_extra=extra[::-1], n_predict=1))
    finally:
        del source.generate
    texts = [client.json("/detokenize", {"tokens": ids})["content"] for ids in seen]
    begin = "a\n<repo_continuation>b\n<repo_continuation><fim_prefix><fim_suffix>"
    assert [text.startswith(begin) for text in texts] == [True, True, True]


def test_several_answers_are_a_list_that_begins_with_the_only_one(client):
    only = client.json("/infill", vim(response_fields=None))
    body = vim(n_cmpl=3, seed=1, response_fields=["index", "content"])
    several = client.json("/infill", body)
    assert [answer["index"] for answer in several] == [0, 1, 2]
    assert several[0]["content"] == only["content"]
    assert several == client.json("/infill", body)


@pytest.mark.parametrize("path", ["/infill", "/completion"])
def test_a_stream_adds_up_to_the_whole(client, path):
    body = vim(response_fields=None) if path == "/infill" else FREE
    whole = client.json(path, body)
    *chunks, last = client.events(path, {**body, "stream": True})
    assert "".join(chunk["content"] for chunk in chunks) == whole["content"]
    assert (last["content"], last["stop"], chunks[0]["stop"]) == ("", True, False)
    assert last["stop_type"] == whole["stop_type"]
    assert last["tokens_predicted"] == whole["tokens_predicted"]


def test_ends_and_limits_of_a_completion(client):
    whole = client.json("/completion", FREE)
    assert (whole["tokens_predicted"], whole["stop_type"]) == (12, "limit")
    assert whole["tokens_cached"] == whole["tokens_evaluated"] + 11
    assert set(whole["tokens"]) and whole["timings"]["predicted_per_second"] > 0
    assert not [name for name in whole["timings"] if "energy" in name]
    word = whole["content"][4:7]
    stopped = client.json("/completion", {**FREE, "stop": ["?!", word]})
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", word)
    assert stopped["content"] == whole["content"].partition(word)[0]
    # The time counts from the first token and holds once there is a line end.
    assert "\n" in whole["content"]
    timed = client.json("/completion", {**FREE, "t_max_predict_ms": 1e-6})
    assert timed["stopped_by"] == "time"
    assert timed["content"].count("\n") == 1 and whole["content"].startswith(timed["content"])
    first, second = (client.json("/tokenize", {"content": part})["tokens"] for part in LOOP)
    for prompt in (first + second, [*first, LOOP[1]], [LOOP[0], *second]):
        assert client.json("/completion", {**FREE, "prompt": prompt})["content"] == whole["content"]


def test_an_answer_tells_its_settings_and_whether_the_context_ended_it(client):
    asked = {**FREE, "seed": 3, "stop": "?!", "top_k": 5, "n_predict": 2}
    answer = client.json("/completion", asked)
    expected = {**asked, "stop": ["?!"], "top_p": 0.95, "stream": False, "n_probs": 0}
    del expected["prompt"]
    assert answer["generation_settings"].items() >= expected.items()
    assert answer["truncated"] is False
    hole = client.json("/infill", vim(response_fields=None))["generation_settings"]
    assert (hole["temperature"], hole["seed"], hole["n_predict"]) == (0, 2**32 - 1, 24)
    near_end = {"prompt": [5] * 1020, "ignore_eos": True, "temperature": 0}
    answer = client.json("/completion", near_end)
    assert answer["truncated"] and answer["tokens_predicted"] == 4
    assert answer["generation_settings"]["n_predict"] == -1


def test_probabilities_of_tokens(client):
    asked = {**FREE, "n_probs": 2}
    answer = client.json("/completion", asked)
    found = answer["completion_probabilities"]
    assert "".join(each["token"] for each in found) == answer["content"]
    assert [each["id"] for each in found] == answer["tokens"]
    assert all(each["top_logprobs"][0]["id"] == each["id"] for each in found)
    assert {len(each["top_logprobs"]) for each in found} == {2}
    *chunks, last = client.events("/completion", {**asked, "stream": True})
    streamed = [each["id"] for chunk in chunks for each in chunk["completion_probabilities"]]
    assert streamed == answer["tokens"] and last["completion_probabilities"] == []


def test_seeds_and_penalties(client):
    hot = {**FREE, "temperature": 1.5, "seed": 3}
    texts = [client.json("/completion", hot)["content"] for _ in range(2)]
    assert texts[0] == texts[1] != client.json("/completion", FREE)["content"]
    penalised = client.json("/completion", {**FREE, "n_predict": 40, "repeat_penalty": 3})
    assert penalised["content"] != client.json("/completion", {**FREE, "n_predict": 40})["content"]


def test_what_the_model_refuses(client):
    for prompt, sentence in (
        ([1, 2**40], "vocabulary ends at"),
        (["x", -1], "vocabulary ends at"),
        ("x\n" * 1500, "tokens and the model's context ends at 1024"),
    ):
        status, found = client.refused("/completion", {"prompt": prompt})
        assert status == 400 and sentence in found


def test_tokens_and_templates(client):
    text = "def f<fim_middle>é"
    ids = {}
    for special in (True, False):
        body = {"content": text, "parse_special": special}
        ids[special] = client.json("/tokenize", body)["tokens"]
        assert client.json("/detokenize", {"tokens": ids[special]})["content"] == text
    assert len(ids[True]) < len(ids[False])
    message = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    text = client.json("/apply-template", {"messages": [message]})["prompt"]
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_what_the_server_says_of_itself(client):
    health = client.json("/health")
    assert (health["status"], health["energy_boundary"]) == ("ok", None)
    assert "there is none" in health["energy_missing"]
    props = client.json("/props")
    assert props["default_generation_settings"]["n_ctx"] == 1024
    slots = client.json("/slots")
    assert slots[0] == {"id": 0, "n_ctx": 1024, "is_processing": False}
    assert len(slots) == props["total_slots"] == client.queue.engine.places
