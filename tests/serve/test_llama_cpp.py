"""llama.cpp's dialect as llama.vim and llama.vscode speak it, on both engines."""

import json
import re

import pytest

pytest.importorskip("uvicorn")

from edge.generate.decode import MlxSource
from edge.generate.fim import Completer

PREFIX, LINE, SUFFIX = (
    "import os\n\ndef f(path):\n",
    "    for key, value in d.",
    "():\n    print(key, value)\n",
)
FIELDS = [
    "content", "timings/prompt_n", "timings/prompt_ms", "timings/prompt_per_second",
    "timings/predicted_n", "timings/predicted_ms", "truncated", "tokens_cached",
]  # fmt: skip


def vim(line=LINE, **more):
    """The body that llama.vim sends."""
    return {
        "id_slot": 0,
        "input_prefix": PREFIX,
        "input_suffix": SUFFIX,
        "input_extra": [],
        "prompt": line,
        "n_predict": 128,
        "stop": [],
        "n_indent": 4,
        "top_k": 40,
        "top_p": 0.9,
        "samplers": ["top_k", "top_p", "infill"],
        "stream": False,
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 10**6,  # 1000 in Vim, too short for a busy machine
        "response_fields": FIELDS,
        "model": "",
        **more,
    }


def test_llama_vim_gets_the_middle_of_edge_complete(client, demo):
    completer = Completer(MlxSource(demo.loaded[0]), demo.loaded[1])
    expected = completer.complete(PREFIX + LINE, SUFFIX, order="spm")
    status, _, raw = client.send("/infill", vim(), Authorization="Bearer ")
    assert status == 200 and re.match(rb"\s*{", raw) and re.search(rb'"content"\s*:"', raw)
    answer = json.loads(raw)
    assert list(answer) == FIELDS
    assert answer["content"] == expected.text
    assert answer["timings/predicted_n"] == expected.generated_tokens
