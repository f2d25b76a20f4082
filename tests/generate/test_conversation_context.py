"""Where a conversation no longer fits the context: turns left out, refusals."""

import itertools
import json
import re
import shutil
from dataclasses import replace

import pytest

import edge
from edge.errors import EdgeError
from edge.generate.chatml import ChatTemplate
from edge.generate.conversation import Conversation, Message
from tests.support.talk import WILD, asked

# Of the demo with a shorter context.
CONTEXT = 256


@pytest.fixture(scope="module")
def short(demo_out, tmp_path_factory):
    """The demo with a context that is soon full."""
    path = tmp_path_factory.mktemp("short") / "mlx-fp16"
    shutil.copytree(demo_out / "mlx-fp16", path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    return edge.load(path)


def words(tokens):
    """A text of so many tokens, about."""
    return "a b" * tokens


def fill(short, chat, turns):
    """So many questions of forty tokens."""
    for _ in range(turns):
        asked(short, chat, text=words(40), sampling=WILD, max_tokens=4)


def test_the_oldest_turns_are_left_out_of_the_prompt(short):
    chat = Conversation(*short, system="Be short.")
    dropped, reused = [], []
    for turn in range(14):
        question = f"{turn} {words(15)}"
        ids, _, _ = asked(short, chat, text=question, sampling=WILD, max_tokens=4)
        text = short[1].decode(ids)
        first, last = chat.dropped_turns, turn
        assert text.startswith(
            f"<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n{first} "
        )
        numbers = re.findall(r"<\|im_start\|>user\n(\d+) ", text)
        assert numbers == [str(n) for n in range(first, last + 1)]
        assert len(ids) <= CONTEXT - 4
        dropped.append(chat.dropped_turns)
        reused.append(chat.reused_tokens)
    assert len(chat.messages) == 1 + 2 * 14
    assert dropped[0] == 0 and dropped == sorted(dropped)
    # Several turns are left out at a time, so most prompts begin as the one before.
    changes = [now > before for before, now in itertools.pairwise(dropped)]
    assert 1 < sum(changes) <= len(changes) // 2
    kept = [count for count, changed in zip(reused[1:], changes, strict=True) if not changed]
    assert min(kept) >= len(short[1].encode(f"0 {words(15)}"))


def test_what_stays_takes_three_quarters_of_the_room_at_most(short):
    chat = Conversation(*short)
    while not chat.dropped_turns:
        ids, _, _ = asked(short, chat, text=words(20), sampling=WILD, max_tokens=4)
    assert len(ids) <= 3 / 4 * (CONTEXT - 4)
    # One turn fewer left out would have been too many.
    earlier = chat._turns[chat.dropped_turns - 1 :]
    asked_again = (*earlier[:-1], replace(earlier[-1], answer=None))
    assert len(chat._ids(asked_again)) > 3 / 4 * (CONTEXT - 4)


def test_undo_brings_left_out_turns_back(short):
    chat = Conversation(*short)
    while not chat.dropped_turns:
        fill(short, chat, 1)
    while len(chat.messages) > 4:
        chat.undo()
    list(chat.ask("x", max_tokens=1))
    assert chat.dropped_turns == 0


def test_the_last_question_may_take_the_room_of_the_answer(short):
    chat = Conversation(*short, system="Be short.")
    fill(short, chat, 2)
    ids, generated, _ = asked(short, chat, text=words(200), sampling=WILD)
    assert CONTEXT * 3 / 4 < len(ids) < CONTEXT
    assert chat.dropped_turns == 2
    assert len(ids) + len(generated) == CONTEXT
    assert chat.messages[-1].cut_off
    # With the line end after <|im_end|>, which was not generated, it is more than that.
    assert chat.context_tokens == CONTEXT == chat.context_limit


def test_a_question_that_does_not_fit_alone_is_refused_with_the_numbers(short):
    chat = Conversation(*short)
    fill(short, chat, 1)
    before = chat.messages
    with pytest.raises(EdgeError, match=r"has 31\d tokens .* ends at 256.* shorten it by 5\d or"):
        chat.ask(words(300))
    assert chat.messages == before


def test_the_turns_to_keep_of_many_are_found_quickly(short, monkeypatch):
    chat = Conversation(*short)
    chat.restore([Message("user", words(20)), Message("assistant", "c")] * 100)
    calls = []
    ids = ChatTemplate.ids
    monkeypatch.setattr(ChatTemplate, "ids", lambda *a, **o: calls.append(1) or ids(*a, **o))
    list(chat.ask("x", max_tokens=1))
    assert chat.dropped_turns > 90
    assert len(calls) <= 10
