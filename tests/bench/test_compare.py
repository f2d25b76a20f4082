import json
import math
import random

import msgspec
import pytest

from edge.bench.compare import QUANTITIES, compare, difference
from edge.cli.main import main
from edge.errors import EdgeError
from edge.profile.profile import Profile

DECODE = QUANTITIES[0]


def trial(round_, rate, watts=None, warmup=False):
    energy = {"window_s": 4.0, "tokens": int(rate * 4), "coverage": 0.5}
    return {
        "warmup": warmup,
        "round": round_,
        "decode_tok_s": rate,
        "prefill_tok_s": 10 * rate,
        "decode_energy": watts and {**energy, "joules": {"cpu": watts, "gpu": watts}},
    }


def row(rates, watts=None, **changed):
    trials = [trial(i, rate, watts) for i, process in enumerate(rates) for rate in process]
    return {
        **{"artefact": "mlx-int4", "engine": "mlx", "framework": "MLX", "precision": "INT4"},
        "workload": {"prompt": 512, "generate": 128},
        **{"verdict": "VALID", "reasons": []},
        "peak_memory_bytes": 2_000_000_000,
        "engine_facts": {"threads": 4},
        "power": watts and {"source": "rapl", "boundary": "package"},
        "trials": [trial(0, 1.0, warmup=True), *trials],
        **changed,
    }


def profile(*rows, **changed):
    made = {
        "schema": 1,
        "created_utc": "2026-01-01T00:00:00+00:00",
        **{"device": {"name": "Apple M2 Max"}, "software": {"mlx": "0.32.4"}},
        **{"model": {"name": "demo"}, "method": {"decode_rate": "(N - 1)"}},
        "rows": list(rows),
        **changed,
    }
    return msgspec.convert(made, Profile)


STEADY = [[100.0, 101.0], [100.0, 99.0], [101.0, 100.0]]
FASTER = [[110.0, 111.0], [110.0, 109.0], [111.0, 110.0]]


def difference_of(a, b, quantity="decode"):
    (row,) = compare(a, b, 0.02).rows
    return next(found for found in row.differences if found.quantity == quantity)


def test_a_ratio_is_that_of_the_processes_geometric_means():
    a, b = profile(row(STEADY)), profile(row(FASTER))
    found, back = difference_of(a, b), difference_of(b, a)
    assert found.ratio == pytest.approx((110.5 * 109.5 * 110.5 / (100.5 * 99.5 * 100.5)) ** (1 / 3))
    assert found.processes == (3, 3)
    assert (found.conclusion, found.is_better) == ("higher", True)
    assert found.interval[0] < found.ratio < found.interval[1]
    # (2.79 + 2.14) x the standard error of 0.45 %
    assert found.detectable == pytest.approx(0.0224, abs=0.0001)
    assert back.ratio == pytest.approx(1 / found.ratio)
    assert (back.conclusion, back.is_better) == ("lower", False)


@pytest.mark.parametrize(
    ("a", "b", "conclusion"),
    [
        ([100.0, 100.05, 99.95], [100.0, 80.0, 125.0], "no significant difference"),
        ([100.0, 100.05, 99.95], [101.0, 101.1, 100.9], "below the minimum effect"),
        ([100.0] * 3, [150.0, 151.0], "too few processes"),
        ([100.0] * 3, [150.0, 151.0, 150.0], "higher"),
        ([100.0] * 3, [100.0] * 3, "no significant difference"),
        ([100.0] * 3, [103.0] * 3, "higher"),
    ],
)
def test_a_difference_is_significant_and_not_below_the_minimum_effect(a, b, conclusion):
    a, b = (profile(row([[rate] for rate in rates])) for rates in (a, b))
    assert difference_of(a, b).conclusion == conclusion


def test_the_interval_covers_the_true_ratio_as_often_as_stated():
    """1000 experiments with spreads of 3 and 8 %, true ratio 1.2, three and five processes."""
    rng = random.Random(5)
    held = 0
    for _ in range(1000):
        a = [100 * math.exp(rng.gauss(0, 0.03)) for _ in range(3)]
        b = [120 * math.exp(rng.gauss(0, 0.08)) for _ in range(5)]
        low, high = difference(DECODE, a, b, 0.02).interval
        held += low <= 1.2 <= high
    assert 930 <= held <= 970
    for _ in range(300):  # interval and test never disagree
        a, b = ([100 * math.exp(rng.gauss(0, 0.05)) for _ in range(4)] for _ in range(2))
        found = difference(DECODE, a, b, 0.0)
        outside = not found.interval[0] <= 1 <= found.interval[1]
        assert outside == (found.conclusion in ("higher", "lower"))


def test_joules_and_watts_are_compared_on_the_same_rails_only():
    a, b = profile(row(STEADY, watts=10.0)), profile(row(STEADY, watts=8.0))
    power, energy = difference_of(a, b, "power"), difference_of(a, b, "energy")
    # 20 J over half of a window of 4 s: 10 W.
    assert (power.a, power.ratio) == pytest.approx((10.0, 0.8))
    assert energy.a == pytest.approx(0.1, rel=0.01)
    assert energy.is_better is True
    b = profile(row(STEADY, watts=8.0, power={"source": "nvml", "boundary": "GPU"}))
    found = compare(a, b, 0.02)
    assert [d.quantity for d in found.rows[0].differences] == ["decode", "prefill", "memory"]
    assert any("rapl (package) in A, nvml (GPU) in B" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    ("rows", "changed", "message"),
    [
        ([{}], {"model": {"name": "other"}}, "different models .name: demo in A, other in B"),
        ([{}], {"method": {"decode_rate": "N"}}, "different methods .decode_rate"),
        ([{"workload": {"prompt": 512, "generate": 128, "joint": True}}], {}, r"pp512\+tg128"),
        ([{"artefact": "mlx-fp16"}], {}, r"no valid row in common .mlx-int4 .*only in A; mlx-fp16"),
        ([{"verdict": "INVALID", "reasons": ["it died"]}], {}, "INVALID in B .it died"),
        ([{"model": {"name": "other"}}], {}, "the profile's in A, other, 0 parameters in B"),
        ([{}, {}], {}, r"Profile B has mlx-int4 on mlx .* twice"),
    ],
)
def test_profiles_that_do_not_match_are_refused(rows, changed, message):
    b = profile(*(row(FASTER, **fields) for fields in rows), **changed)
    with pytest.raises(EdgeError, match=message):
        compare(profile(row(STEADY)), b, 0.02)


def test_other_differences_are_remarks():
    a = profile(row(STEADY), row(STEADY, artefact="mlx-fp16"), row(STEADY, engine="mlx-lm"))
    b = profile(
        row(FASTER, engine_facts={"threads": 8}, verdict="WARN", reasons=["hot"]),
        row(FASTER, artefact="mlx-fp16", verdict="INVALID", reasons=["it died"]),
        device={"name": "Apple M4"},
        software={"mlx": "0.33.0"},
    )
    found = compare(a, b, 0.02)
    assert len(found.rows) == 1
    text = "\n".join(found.remarks)
    for part in (
        "different devices: Apple M2 Max in A, Apple M4 in B",
        "mlx: 0.32.4 in A, 0.33.0 in B",
        "threads: 4 in A, 8 in B",
        "is WARN in B: hot",
        "not compared: mlx-fp16 on mlx (pp512, tg128) is INVALID in B (it died)",
        "mlx-int4 on mlx-lm (pp512, tg128) is only in A",
    ):
        assert part in text


def test_the_command_prints_a_table_or_json(tmp_path, capsys):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, rates in zip(paths, (STEADY, FASTER), strict=True):
        path.write_bytes(msgspec.json.encode(profile(row(rates))))

    def printed(*words):
        assert main(["bench", "--compare", *map(str, paths), *words]) == 0
        return capsys.readouterr().out

    out = printed()
    assert "mlx-int4 on mlx, pp512, tg128" in out
    assert "10.0% higher: better" in out
    assert "2.2% | 10.0% higher" in out and "- detectable: the smallest difference" in out
    assert "- A: a.json, Apple M2 Max" in out
    assert len({len(line) for line in out.splitlines() if line.startswith("|")}) == 1
    assert "below the minimum effect" in printed("--min-effect", "20%")
    found = json.loads(printed("-o", "json"))
    assert list(found) == ["model", "devices", "min_effect", "confidence", "rows", "remarks"]
    assert found["rows"][0]["differences"][0]["conclusion"] == "higher"


def test_profiles_of_older_versions_are_compared():
    old = row(STEADY, watts=10.0, power=None, workload={})
    del old["peak_memory_bytes"]
    for each in old["trials"]:
        del each["decode_tok_s"], each["decode_energy"]
    found = compare(profile(old), profile(old), 0.02)
    assert [found.quantity for found in found.rows[0].differences] == ["prefill"]
    peaks = [{"round": n, "peak_memory_bytes": (500 + n) * 10**6} for n in range(3)]
    new = profile(row(STEADY, processes=peaks))
    assert difference_of(new, profile(row(STEADY)), "memory").processes == (3, 1)
