import copy
import json
import os
from pathlib import Path

import pytest

from edge.errors import EdgeError
from edge.profile.check import check
from tests.support.profiles import GATE, ROOT, failed_profile, linux_profile, make_profile

PROFILE = make_profile(artefacts=("mlx-int4", "gguf-q6_k"), generate=32, samples=0)


def faults_of(tmp_path, data, names=()):
    path = tmp_path / "p.json"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return [(fault.where, fault.what) for fault in check([path], names).faults]


REMOVED = object()


def changed(place, value):
    """The profile with something else, or nothing, at a place such as rows.0.verdict."""
    profile = copy.deepcopy(PROFILE)
    *steps, last = (int(step) if step.isdigit() else step for step in place.split("."))
    target = profile
    for step in steps:
        target = target[step]
    if value is REMOVED:
        del target[last]
    else:
        target[last] = value
    return profile


def batches_profile():
    return make_profile(batches=(1, 8), samples=0)


@pytest.mark.parametrize("maker", [failed_profile, linux_profile, make_profile, batches_profile])
def test_measured_and_generated_profiles_have_no_faults(tmp_path, maker):
    assert check([ROOT / "profiles" / "measured"]).faults == []
    assert faults_of(tmp_path, maker()) == []


@pytest.mark.parametrize(
    ("place", "value", "where", "words"),
    [
        ("model", REMOVED, "", "missing required field `model`."),
        ("argv", REMOVED, "", "lacks argv."),
        ("rows.0.trials.0.token_us", REMOVED, "rows[0].trials[0]", "lacks token_us."),
        ("rows.0.ttft_s.median", "fast", "rows[0].ttft_s.median", "Expected `float`, got `str`."),
        ("rows.0.verdict", "GREAT", "rows[0].verdict", "'GREAT'"),
        ("software.a b", 1, "software[...]", "Expected `str`, got `int`."),
        ("device.memory_bandwidth.gb_s", 0, "device.memory_bandwidth.gb_s", ">="),
        ("created_utc", "2026-13-01T00:00:00Z", "created_utc", "which is not a valid date."),
        ("rows.0.decode_tok_s.n", 7, "rows[0].decode_tok_s.n", "is 7, but 6 trials have"),
        ("rows.0.prefill_tok_s.mean", 1.5, "rows[0].prefill_tok_s.mean", "values give"),
        ("rows.0.power_w.median", 5.0, "rows[0].power_w.median", "values give 2"),
        ("rows.0.joules_per_token_net.median", 9.0, "rows[0].joules_per_token_net.median", "gross"),
        ("rows.0.decode_tok_s.ci95", [2, 1], "rows[0].decode_tok_s.ci95", "wrong order"),
        ("rows.0.token_latency_ms.p50", 1e6, "rows[0].token_latency_ms", "do not rise"),
        ("rows.0.trials.0.decode_tok_s", 1.0, "rows[0].trials[0].decode_tok_s", "stamps give"),
        ("rows.0.trials.0.ttft_s", None, "rows[0].trials[0].ttft_s", "is None, but its stamps"),
        ("rows.0.trials.0.prefill_ns", [5], "rows[0].trials[0].prefill_ns", "do not pair"),
        ("rows.0.trials.0.pass_end_ns", [0], "rows[0].trials[0].pass_end_ns", "run backwards"),
        ("rows.0.trials.0.token_us.0", [1], "rows[0].trials[0].token_us[0]", "has 1 times, but"),
        ("rows.0.trials.0.token_us.0.0", 1, "rows[0].trials[0].token_us[0]", "does not add up"),
        ("rows.0.bandwidth_fraction", 0.9, "rows[0].bandwidth_fraction", "is 0.9, but rate"),
        ("rows.0.reasons", [], "rows[0].quality", "reasons does not say why"),
        ("rows.0.quality", {"kl_mean": -0.1}, "rows[0].quality.kl_mean", ">="),
        ("rows.0.gate", {**GATE, "worst_error": 1.0}, "rows[0].gate.worst_error", "is beyond"),
    ],
)
def test_faults_have_their_place(tmp_path, place, value, where, words):
    ((found, what),) = faults_of(tmp_path, changed(place, value))
    assert found == where
    assert words in what


def scaled(factor, verdict="VALID", **how):
    """A consistent profile at a rate times `factor`."""
    profile = make_profile("Apple M2", artefacts=("mlx-int4",), rate=factor, samples=0, **how)
    profile["rows"][0] |= {"verdict": verdict, "reasons": ["quality is not measured", "too fast"]}
    return profile


def test_rates_above_the_roofline_are_faults_unless_its_bandwidth_was_measured(tmp_path):
    ((where, what),) = faults_of(tmp_path, scaled(4))
    assert where == "rows[0].decode_tok_s.median"
    assert "this device's memory can do 102.4 GB/s" in what
    assert faults_of(tmp_path, scaled(4, "INVALID")) == faults_of(tmp_path, scaled(1.4)) == []
    ((where, what),) = faults_of(tmp_path, scaled(4, batches=(64,)))  # 45 MB a token, not a step
    assert "this device's memory can do 102.4 GB/s" in what
    profile = scaled(4)
    profile["device"]["memory_bandwidth"] = {"gb_s": 1024.0, "source": "given"}
    profile["rows"][0]["bandwidth_fraction"] /= 10
    assert [where for where, _ in faults_of(tmp_path, profile)] == ["rows[0].decode_tok_s.median"]
    profile["device"]["name"] = "Apple M99"  # not in the table of chips
    assert faults_of(tmp_path, profile) == []
    profile["device"]["memory_bandwidth"] = {"gb_s": 102.4, "source": "measured: can be too low"}
    profile["rows"][0]["bandwidth_fraction"] *= 10
    assert faults_of(tmp_path, profile) == []


def test_failed_rows_may_withhold_figures(tmp_path):
    profile = copy.deepcopy(PROFILE)
    names = ("decode_tok_s", "prefill_tok_s", "ttft_s", "power_w", "joules_per_token")
    profile["rows"][0] |= dict.fromkeys((*names, "joules_per_token_net", "bandwidth_fraction"))
    profile["rows"][0]["reasons"] = ["no quantity was measured: the row failed"]
    # Five are null despite trials, eight have no reason.
    assert len(faults_of(tmp_path, profile)) == 13
    profile["rows"][0]["verdict"] = "INVALID"
    assert faults_of(tmp_path, profile) == []


def test_one_value_has_no_sd_and_trials_may_lack_energy(tmp_path):
    profile = make_profile(artefacts=("mlx-int4",), processes=1, samples=0)
    row = profile["rows"][0]
    del row["trials"][2]
    for key in ("decode_tok_s", "prefill_tok_s", "ttft_s"):
        value = row["trials"][1][key]
        row[key] = {"median": value, "mean": value, "sd": 0.0, "n": 1}
    for trial in row["trials"]:
        del trial["decode_energy"]
    assert faults_of(tmp_path, profile) == []


def test_verdicts_and_nulls_need_a_reason_and_rows_are_unique(tmp_path):
    profile = changed("rows.0", {**PROFILE["rows"][0], "verdict": "WARN", "reasons": []})
    profile["rows"][0]["quality"] = {}
    profile["rows"].append(profile["rows"][1])
    assert faults_of(tmp_path, profile) == [
        ("rows[0].reasons", "is empty, but a row that is WARN needs a reason."),
        ("rows[2]", "measures the same as rows[1]: remove one of them."),
    ]
    profile = changed("rows.0.quality", {"kl_mean": 0.0, "kl_p99": None, "new": {}})
    assert faults_of(tmp_path, profile) == []  # a reason is about quality
    profile["rows"][0]["reasons"] = []
    ((where, what),) = faults_of(tmp_path, profile)
    assert where == "rows[0].quality.kl_p99" and "does not say why" in what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("python /Users/anna/edge/bench.py", 'a home folder ("/Users/anna")'),
        ("/root" + "/models", "a user's folder"),
        ("anna@example.org", "a mail address"),
        ("annas-mbp.local", "a host name"),
        ("Annas-MacBook-Pro", "a host name"),
        ("C02XG2JHJGH5", "a serial number"),
        ("a4:83:e7:01:02:03", "a network card's address"),
        ("564D1C2B-6E0B-4D0A-9F3C-1B2A3C4D5E6F", "a machine's identifier"),
        ("http://192.168.1.20:8000", "an address"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "an access token"),
        ("measured on Quince", '"quince", a name of this machine or its user'),
    ],
)
def test_private_data_is_found_in_any_text_and_key(tmp_path, text, what):
    for profile in (changed("argv.1", text), changed("rows.0.new", {text: 1})):
        ((_, found),) = faults_of(tmp_path, profile, names=("quince",))
        assert what in found


def test_ordinary_texts_are_not_private(tmp_path):
    texts = [
        *("/sys/class/powercap has no package", "macOS 27.0 (26A428)", "12.535.133.1 and 0.32.4"),
        *("Q5_K_M NVIDIA H200 GPU-0 float16", "GENUINEINTEL 1234567890 Mac14,6"),
        "stabilityai/stable-code-3b at 0123456789abcdef0123456789abcdef01234567",
        "pip install 'stable-edge[nvidia]'; --bandwidth-gb-s; ~/models",
        *("Quinces and quince-3b", "2026-03-01T10:00:00+00:00"),
    ]
    assert faults_of(tmp_path, changed("argv", texts), names=("quince",)) == []


def test_folders_are_searched_and_faults_have_their_file(tmp_path):
    with pytest.raises(EdgeError, match=r"does not contain \*\.json files"):
        check([tmp_path])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "good.json").write_text(json.dumps(PROFILE))
    (tmp_path / "bad.json").write_text(json.dumps(changed("argv", 1)))
    (tmp_path / "twice.json").write_text('{"schema": 1, "schema": 1}')
    (tmp_path / "notes.txt").write_text("no profile")
    (tmp_path / ".git").mkdir()
    for hidden in ("._good.json", ".git/config.json"):
        (tmp_path / hidden).write_bytes(b"\0\5\26\7")
    os.mkfifo(tmp_path / "pipe.json")
    checked = check([tmp_path, tmp_path / "gone.json"], names=())
    files = [Path(fault.file).name for fault in checked.faults]
    assert files == ["bad.json", "pipe.json", "twice.json", "gone.json"]
    lines = checked.text().splitlines()
    assert lines[0] == f"{tmp_path}/bad.json: argv: Expected `array`, got `int`."
    assert lines[-1] == "5 profiles checked: 4 faults in 4."
    assert "the key 'schema'" in lines[2]
