"""A second network that proposes: accepted where it agrees, never heard otherwise."""

import pytest

from edge.errors import EdgeError
from edge.generate.decode import generate_tokens
from edge.generate.draft_model import DraftModel
from edge.generate.speculate import Pace
from tests.support.drafters import both, tiny
from tests.support.tiny import PLAIN


@pytest.fixture(scope="module")
def small():
    return tiny(PLAIN)


def test_a_draft_model_is_accepted_where_it_agrees(small):
    """The model as its own draft is always right; another one hardly ever."""
    for draft, right in ((small, True), (tiny(PLAIN, seed=3), False)):
        drafter = DraftModel(draft, Pace(fixed=3))
        for ids in ([4, 5, 6], [4, 5, 6, 9, 9], [7] * 20):
            plain, found = both(small, ids, drafter, max_tokens=30)
            assert found == plain
            # One pass of three may end before a close call.
            assert (drafter.pace.accepted >= drafter.pace.drafted - 3) is right
            assert drafter.pace.drafted > 10


def test_a_draft_model_feeds_only_what_is_new(small, monkeypatch):
    fed, call = [], type(small.model).__call__
    drafter = DraftModel(draft := tiny(PLAIN, seed=2), Pace(fixed=3))
    monkeypatch.setattr(
        type(small.model),
        "__call__",
        lambda self, ids, cache: (
            (fed.append(ids.shape[1]) if self is draft.model else None) or call(self, ids, cache)
        ),
    )
    list(generate_tokens(small, [3] * 50, max_tokens=20, draft=drafter))
    assert fed[0] == 51 and max(fed[1:]) <= 5
    fed.clear()
    list(generate_tokens(small, [3] * 50 + [4], max_tokens=5, draft=drafter))
    assert fed[0] == 2  # the new id of the prompt and the first that was chosen


def test_a_draft_models_own_context_ends_quietly(small):
    draft = tiny({**PLAIN, "max_position_embeddings": 40})
    drafter = DraftModel(draft, Pace(fixed=3))
    plain, found = both(small, [4, 5, 6], drafter, max_tokens=60)
    assert found == plain and 0 < drafter.pace.accepted < 40


def test_another_vocabulary_is_refused_by_the_call(small):
    drafter = DraftModel(tiny({**PLAIN, "vocab_size": 128}))
    with pytest.raises(
        EdgeError, match="vocabulary of 128 tokens and the model one of 160; choose"
    ):
        generate_tokens(small, [1, 2], draft=drafter)
