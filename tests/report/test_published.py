"""Table 11 with measured figures beside it."""

import pytest

from edge.report.published import table11_beside
from tests.support.profiles import make_profile, typed


@pytest.fixture
def made():
    """One row that counts, a faster peer before it, and an INVALID one; as plain data."""
    data = make_profile(artefacts=("mlx-int4", "gguf-q6_k"), model="synthetic-stable-code-3b")
    ours, other = data["rows"]
    peer = {**ours, "engine": "mlx-lm"}
    ours.update(bandwidth_fraction=0.38)
    for name, value in (("decode_tok_s", 104.0), ("power_w", 26.0), ("joules_per_token", 0.25)):
        ours[name] = {**ours[name], "median": value}
    other.update(verdict="INVALID", reasons=["wrong logits"])
    data["rows"] = [peer, ours, other]
    data["model"]["synthetic"] = True
    return data


def test_ours_stands_beside_the_published(made):
    beside = table11_beside(typed(made))
    assert [[cell.text for cell in line] for line in beside.table.lines][1] == [
        *("MLX", "INT4", "52", "104", "2.00", "17", "26.0"),
        *("0.327", "0.250", "38%", "19%", "38%"),
    ]
    assert [cell.text for cell in beside.table.lines[4]].count("—") == 5
    text = " ".join(beside.notes)
    for part in (
        *("arXiv 2404.01226 (2024), Table 11, on 'M2 Pro Max'", "https://", "rough estimate"),
        *("Apple M2 Pro 204.8 GB/s, Apple M2 Max 409.6 GB/s", "computed: W / (tok/s)"),
        *("on Apple M2 Max, pp512, tg128, medians", "Our weights are random"),
        "Without a figure of ours: FP16, FP16, Q5_K_M, Q6_K",
    ):
        assert part in text
    assert "say nothing about the devices" not in text
    assert text.count("Our watts are of powermetrics (CPU, GPU and ANE;") == 1
    assert beside.markdown().startswith("| Framework | Precision |")


def test_another_model_is_named_as_such(made):
    made["model"].update(name="demo", parameters=5_500_000, synthetic=False)
    text = " ".join(table11_beside(typed(made)).notes)
    assert "6 M weights and the published model, stable-code-3b, 2795 M" in text
    assert "random" not in text
