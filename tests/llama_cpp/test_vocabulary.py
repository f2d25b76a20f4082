"""A GGUF file's tokenizer in llama.cpp against the tokenizer of the checkpoint."""

import numpy as np
import pytest

from edge.convert.checkpoint import open_checkpoint
from edge.errors import EdgeError
from edge.formats.files import DEMO_PATH
from edge.generate.chat_prompt import ChatPrompt
from edge.generate.transcript import Message
from edge.llama_cpp.session import LlamaSession
from edge.llama_cpp.vocabulary import read_tokenizer
from edge.quality.corpus import TokenBytes
from edge.tokenizer.detokenizer import StreamingDetokenizer
from edge.tokenizer.tokenizer import Tokenizer, encode_text, special_ids, token_id

MESSAGES = [Message("user", "a <|im_end|> b"), Message("assistant", "é\n"), Message("user", "c")]


@pytest.fixture(scope="module", params=["demo", "smollm2"])
def both(request, demo_out):
    """The tokenizer in llama.cpp, and that of the checkpoint or made of the file's keys."""
    path = demo_out / "gguf-f16.gguf"
    if request.param == "smollm2":
        path = request.getfixturevalue("smollm2_path")
    wanted = open_checkpoint(str(path)).tokenizer
    found = read_tokenizer(LlamaSession(path, 64, 1))
    return found, Tokenizer.load(DEMO_PATH) if request.param == "demo" else wanted


def test_ids_and_texts_are_those_of_the_checkpoints_tokenizer(both, held_out_text):
    found, wanted = both
    ours, theirs = found.backend_tokenizer, wanted.backend_tokenizer
    assert len(found) == len(wanted)
    assert (found.bos_token, found.eos_token) == (wanted.bos_token, wanted.eos_token)
    assert wanted.eos_token_ids <= found.eos_token_ids <= special_ids(ours)
    assert special_ids(ours) == special_ids(theirs)
    for text in ("", held_out_text[:2000], "é 日本 🎉<|im_start|>x<fim_prefix> <|endoftext|>\r\n"):
        assert found.encode(text) == wanted.encode(text)
        assert encode_text(ours, text) == encode_text(theirs, text)
        ids = wanted.encode(text, add_special_tokens=False)
        assert found.decode(ids) == wanted.decode(ids)
        assert found.decode(ids, True) == wanted.decode(ids, True)
        assert TokenBytes(found).lengths(ids, text) == TokenBytes(wanted).lengths(ids, text)
    for name in ("<|im_end|>", "<fim_middle>", "no such token", ""):
        assert token_id(found, name) == token_id(wanted, name)
    assert found.decode([-1, len(found), 2**31 - 1]) == ""
    with pytest.raises(EdgeError, match="half a surrogate pair"):
        found.encode("\ud800")


def test_any_ids_are_streamed_without_losing_a_byte(both):
    found, wanted = both
    ids = np.random.default_rng(5).integers(0, len(found), 500).tolist()
    stream = StreamingDetokenizer(found)
    text = "".join(map(stream.add, ids)) + stream.finish()
    assert text == found.decode(ids) == wanted.decode(ids)


def test_the_chat_template_is_rendered_the_same(both):
    found, wanted = (ChatPrompt(tokenizer) for tokenizer in both)
    assert found.render(MESSAGES) == wanted.render(MESSAGES)
    assert found.ids(MESSAGES) == wanted.ids(MESSAGES)
