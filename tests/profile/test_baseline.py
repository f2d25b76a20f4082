import math

import pytest

from edge.errors import EdgeError
from edge.profile.baseline import check_baseline, with_ratios
from edge.profile.ratio import log_ratios, ratio_of
from edge.profile.trial import Trial
from tests.support.profiles import failed_row, make_profile, quantity, typed


def trials(*rounds):
    return [
        Trial(warmup=False, round=n, repetition=i, decode_tok_s=rate)
        for n, rates in enumerate(rounds)
        for i, rate in enumerate(rates)
    ]


def test_a_round_is_the_median_of_neighbours_and_drift_cancels():
    ours = trials([110.0, 220.0, 44.0], [330.0], [55.0], [1.0])
    theirs = trials([100.0, 200.0, 400.0], [300.0], [50.0])  # 44 was a burst of other work
    assert log_ratios(ours, theirs, "decode_tok_s") == pytest.approx([math.log(1.1)] * 3)
    found = ratio_of(ours, theirs, "decode_tok_s")
    assert (found.rounds, found.ratio) == (3, pytest.approx(1.1))
    assert found.interval == pytest.approx((1.1, 1.1))
    assert found.detectable == pytest.approx(0)


def test_a_ratio_needs_a_common_round_and_an_interval_two():
    assert ratio_of(trials([1.0]), trials([None]), "decode_tok_s") is None
    found = ratio_of(trials([3.0]), trials([2.0]), "decode_tok_s")
    assert (found.ratio, found.interval, found.detectable) == (pytest.approx(1.5), None, None)
    wild = ratio_of(trials([1e15], [1e-15]), trials([1e-9], [1e9]), "decode_tok_s")
    assert wild.interval[1] < 1e15  # what a profile can hold


@pytest.fixture
def made():
    """Rows: fp16, int4 at 110 % and its peer, and int4 in another environment at 90 %."""
    data = make_profile(artefacts=("mlx-fp16", "mlx-int4"))
    fp16, int4 = data["rows"]
    rows = [fp16]
    for factor, changed in ((1.1, {}), (0.5, {"engine": "mlx-lm"}), (0.99, {"arm": "mlx 0.31"})):
        shifted = [
            {**trial, "decode_tok_s": trial["decode_tok_s"] * factor} for trial in fp16["trials"]
        ]
        rows.append({**int4, "trials": shifted, **changed})
    data["rows"] = rows
    return data


def ratios(profile):
    return [
        (row.baseline, row.ratios and round(row.ratios["decode_tok_s"].ratio, 3))
        for row in profile.rows
    ]


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        (None, [(None, {}), (None, {}), (None, {}), ("mlx-int4", 0.9)]),
        ("mlx-fp16", [(None, {}), *(("mlx-fp16", r) for r in (1.1, 0.5, 0.99))]),
        ("mlx-int4 (mlx-lm)", [("mlx-int4 (mlx-lm)", r) for r in (2.0, 2.2)]),
        ("mlx-lm", [(None, {}), ("mlx-int4 (mlx-lm)", 2.2)]),  # the same artefact there
    ],
)
def test_a_baseline_is_a_row_or_an_engine_and_by_default_the_same_row_here(
    made, baseline, expected
):
    profile = typed(made)
    found = with_ratios(profile, baseline)
    assert ratios(found)[: len(expected)] == expected
    made["method"]["baseline"] = baseline
    assert ratios(with_ratios(typed(made))) == ratios(found)  # as the run was asked
    assert typed(made | {"rows": []}).rows == with_ratios(typed(made | {"rows": []})).rows
    assert '"ratios"' in found.to_json() and '"ratios"' not in profile.to_json()


def test_a_batch_is_a_baseline_for_the_same_rows_in_other_batches():
    made = make_profile(artefacts=("mlx-fp16", "mlx-int4"), batches=(1, 8), rate=0.5)
    made["rows"].append(made["rows"][3] | {"engine": "mlx-lm"})  # without one sequence
    rows = with_ratios(typed(made), "npl1").rows
    assert [row.baseline for row in rows] == [None, None, "mlx-fp16 npl1", "mlx-int4 npl1", None]
    for one, eight in ((rows[0], rows[2]), (rows[1], rows[3])):
        medians = eight.decode_tok_s.median / one.decode_tok_s.median
        assert eight.ratios["decode_tok_s"].ratio == pytest.approx(medians, rel=0.02)
        assert eight.ratios["joules_per_token"].ratio == pytest.approx(1 / medians, rel=0.05)
    check_baseline("npl8", [("a", "mlx", None)], [1, 8, 8])
    for name, found in (("npl2", r"a, b, npl1, npl8\.$"), ("npl1 ", "npl1, npl8")):
        with pytest.raises(EdgeError, match=found):
            check_baseline(name, [("a", "mlx", None), ("b", "mlx", None)], [1, 8])
    with pytest.raises(EdgeError, match="needs two rows"):
        check_baseline("npl1", [("a", "mlx", None)], [1])


def test_only_figures_that_count_are_compared(made):
    made["rows"][0] = failed_row(made["rows"][0], "it died") | {"trials": made["rows"][1]["trials"]}
    assert all(not row.ratios for row in with_ratios(typed(made), "mlx-fp16").rows)
    made["rows"][1]["power"] = {"source": "another", "boundary": "all"}
    made["rows"][2]["prefill_tok_s"] = None
    _, row, *_ = with_ratios(typed(made), "mlx-lm").rows
    assert list(row.ratios) == ["decode_tok_s"]
    made["rows"][1]["decode_tok_s"] = quantity([1.0, 2.0])
    made["method"]["until_percent"] = 3.0
    assert with_ratios(typed(made), "mlx-lm").rows[1].ratios["decode_tok_s"].confidence == 0.97


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("a", "mlx", None), ("b", "mlx-lm", None)],
            "is not a row; give one of these: a, b .mlx-lm..",
        ),
        (
            [("a", "mlx", None), ("a", "mlx-lm", None), ("a", "mlx", "B")],
            r"give one of these: a, a .mlx-lm., a .B., mlx, mlx-lm\.$",
        ),
        ([("x", "mlx", None)], "--baseline x needs two rows or more; add --rows, --peers or -npl"),
        ([], "needs two rows"),
    ],
)
def test_a_baseline_that_nothing_is_compared_with_is_refused(rows, message):
    with pytest.raises(EdgeError, match=message):
        check_baseline("x" if len(rows) < 2 else "mlx-int8", rows)


def test_an_engine_is_a_baseline_only_where_an_artefact_has_another(made):
    check_baseline("mlx-lm", [("a", "mlx", None), ("a", "mlx-lm", None)])
    with pytest.raises(EdgeError, match="--baseline mlx-lm is not a row"):
        check_baseline("mlx-lm", [("a", "mlx-lm", None), ("b", "llama.cpp", None)])
    with pytest.raises(EdgeError, match=r"mlx-int4 .mlx 0.31., mlx, mlx-lm"):
        with_ratios(typed(made), "mlx-int8")
