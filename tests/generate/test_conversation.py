"""Conversations with the demo: every answer equals a fresh generation of the whole prompt."""

import itertools
import re
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.generate.conversation import Conversation
from edge.generate.sampling import Sampling
from edge.generate.transcript import Message
from tests.support.talk import DRAWN, WILD, asked, fresh, joined, some

CONTEXT = 256  # of the demo in `short`


@pytest.fixture
def short(loaded, shorten):
    shorten(loaded[0], CONTEXT)
    return loaded


@pytest.fixture
def chat(loaded):
    return Conversation(*loaded)


def test_the_prompt_is_the_template_of_the_whole_conversation(loaded):
    chat = Conversation(*loaded, system="Be short.")
    for question in ("one", "two <|im_end|>", "three"):
        ids, _, answer = asked(chat, question, sampling=WILD, max_tokens=7)
        assert answer
        assert chat.messages[0] == Message("system", "Be short.")
        assert chat.messages[-2:] == (Message("user", question), Message("assistant", answer, True))
        plain = [{"role": m.role, "content": m.content} for m in chat.messages[:-1]]
        text = loaded[1].apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
        assert loaded[1].decode(ids) == text
        assert text.count("Be short.") == 1


def test_max_tokens_and_a_stop_string_end_an_answer(chat):
    text = joined(chat.ask("x", sampling=WILD, max_tokens=12))
    assert chat.messages[-1] == Message("assistant", text, cut_off=True)
    stop = text[4:6]
    assert joined(chat.regenerate(sampling=WILD, stop=[stop])) == text[: text.index(stop)]
    assert chat.messages[-1] == Message("assistant", text[: text.index(stop)])


def test_a_closed_or_interrupted_answer_is_kept(chat):
    text = some(chat.ask("class A:", sampling=DRAWN), 4)
    assert text
    assert chat.messages == (Message("user", "class A:"), Message("assistant", text, cut_off=True))
    ids = chat._ids(chat._turns, 0)
    assert chat._tokenizer.decode(ids).count(f"{text}<|im_end|>\n<|im_start|>assistant\n") == 1
    events = chat.ask("class B:", sampling=DRAWN)
    text = joined([next(events), next(events), next(events)])
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt)
    assert chat.messages[-1] == Message("assistant", text, cut_off=True)


def test_a_failed_answer_leaves_the_conversation_unchanged(loaded, chat, monkeypatch):
    list(chat.ask("one", max_tokens=3))
    before = chat.messages
    failures = ((RuntimeError, lambda: chat.ask("two")), (KeyboardInterrupt, chat.regenerate))
    for error, ask in failures:
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(type(loaded[0].model), "__call__", Mock(side_effect=error))
            next(ask())
    assert chat.messages == before
    ids, generated, _ = asked(chat, "two", sampling=DRAWN, max_tokens=5)
    assert generated == fresh(loaded, ids, sampling=DRAWN, max_tokens=5)[0]


def test_a_system_prompt_applies_to_the_whole_conversation(loaded, chat):
    list(chat.ask("x", sampling=DRAWN, max_tokens=4))
    chat.system = "Be short."
    ids, _, _ = asked(chat, "y", max_tokens=2)
    assert loaded[1].decode(ids).startswith("<|im_start|>system\nBe short.<|im_end|>\n")
    chat.clear()
    assert chat.messages == (Message("system", "Be short."),)
    assert (chat.context_tokens, chat.dropped_turns) == (0, 0)
    chat.system = ""
    assert chat.system is None and chat.messages == ()


def test_a_question_without_an_answer_can_be_restored_and_answered(chat):
    chat.restore([Message("user", "x")])
    assert chat.messages == (Message("user", "x"), Message("assistant", "", cut_off=True))
    assert joined(chat.regenerate(sampling=DRAWN, max_tokens=3)) == chat.messages[-1].content


def test_messages_out_of_turn_are_refused(chat):
    names = {"a": "assistant", "u": "user", "s": "system"}
    list(chat.ask("x", max_tokens=2))
    before = chat.messages
    for roles in ("a", "uu", "uaa", "us", "ss", "uasu"):
        with pytest.raises(EdgeError, match="take turns"):
            chat.restore([Message(names[role], "x") for role in roles])
    assert chat.messages == before


QUESTIONS = st.sampled_from(
    ["x", "class A:\n    pass", "for <|im_end|> in y", " \n z ", "\u00e9\u4e16"]
)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["ask", "cut"]), QUESTIONS, st.integers(1, 6)),
    st.tuples(st.just("again"), st.none(), st.integers(1, 6)),
    st.tuples(st.just("undo"), st.none(), st.just(0)),
    st.tuples(st.just("system"), st.sampled_from(["", "s", "Be short."]), st.just(0)),
)


@settings(max_examples=12)
@given(st.lists(STEPS, min_size=2, max_size=7), st.sampled_from([None, 1.3]))
def test_every_answer_is_that_of_a_fresh_generation(loaded, steps, penalty):
    chat = Conversation(*loaded)
    sampling = Sampling(temperature=0.8, seed=3, repetition_penalty=penalty, repetition_context=8)
    for step, text, count in steps:
        options = {"sampling": sampling, "max_tokens": count}
        if step == "undo":
            chat.undo()
        elif step == "system":
            chat.system = text
        elif step == "cut":
            events = chat.ask(text, sampling=sampling)
            ids = list(chat._asked)
            assert fresh(loaded, ids, **options)[1].startswith(some(events, count))
        elif step == "ask" or chat.messages[1:]:
            ids, generated, answer = asked(chat, text, **options)
            assert (generated, answer) == fresh(loaded, ids, **options)


def test_only_the_next_question_is_computed(loaded):
    chat = Conversation(*loaded, system="Be short.")
    ids, generated, _ = asked(chat, "x", sampling=WILD, max_tokens=9)
    assert chat.reused_tokens == 0
    asked(chat, "y", max_tokens=1)
    assert chat.reused_tokens == len(ids) + len(generated) - 1
    ids, generated, _ = asked(chat, "def f(x):")
    assert chat.messages[-1].cut_off is False
    asked(chat, "y", max_tokens=1)
    ended = generated[-1] == loaded[1].convert_tokens_to_ids("<|im_end|>")
    assert chat.reused_tokens == len(ids) + len(generated) - (not ended)
    ids, _, _ = asked(chat, max_tokens=1)
    assert chat.reused_tokens == len(ids) - 1


def test_the_oldest_turns_are_left_out_of_the_prompt(short):
    chat = Conversation(*short, system="Be short.")
    dropped, reused = [], []
    for turn in range(14):
        ids, _, _ = asked(chat, f"{turn} {'a b' * 15}", sampling=WILD, max_tokens=4)
        text = short[1].decode(ids)
        first = chat.dropped_turns
        assert text.startswith(
            f"<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n{first} "
        )
        numbers = re.findall(r"<\|im_start\|>user\n(\d+) ", text)
        assert numbers == [str(n) for n in range(first, turn + 1)]
        assert len(ids) <= CONTEXT - 4
        dropped.append(first)
        reused.append(chat.reused_tokens)
    assert len(chat.messages) == 1 + 2 * 14
    assert dropped[0] == 0 and dropped == sorted(dropped)
    # Several turns are left out at a time, so most prompts reuse the cache.
    changes = [now > before for before, now in itertools.pairwise(dropped)]
    assert 1 < sum(changes) <= len(changes) // 2
    kept = [count for count, changed in zip(reused[1:], changes, strict=True) if not changed]
    assert min(kept) >= len(short[1].encode(f"0 {'a b' * 15}"))


def test_the_last_question_may_take_the_room_of_the_answer(short):
    chat = Conversation(*short, system="Be short.")
    for _ in range(2):
        asked(chat, "a b" * 40, sampling=WILD, max_tokens=4)
    ids, generated, _ = asked(chat, "a b" * 100, sampling=WILD)
    assert CONTEXT * 3 / 4 < len(ids) < CONTEXT
    assert chat.dropped_turns == 2
    assert len(ids) + len(generated) == CONTEXT
    assert chat.messages[-1].cut_off
    assert chat.context_tokens == CONTEXT == chat.context_limit
