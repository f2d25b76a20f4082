"""The profile as structs: written, read in full and in part, refused."""

import json
import re

import msgspec
import pytest
from jsonschema import Draft202012Validator

from edge.device.describe import Device
from edge.errors import EdgeError
from edge.profile.profile import (
    ProfileError,
    Quantity,
    Reason,
    Workload,
    read,
    read_summary,
    write,
)
from edge.profile.trial import Trial
from tests.support.profiles import GATE, ROOT, failed_profile, make_profile, typed
from tools.write_profile_schema import SCHEMA, text

MEASURED = sorted((ROOT / "profiles" / "measured").glob("*.json"))
# The required keys, as in the first version.
OLDEST = {
    "schema": 1,
    "created_utc": "2026-01-01T00:00:00Z",
    **{"device": {"name": "Apple M2"}, "software": {}, "model": {"name": "demo"}, "method": {}},
    "rows": [
        {
            **{"artefact": "mlx-int4", "engine": "mlx", "framework": "MLX", "precision": "INT4"},
            "workload": {"prompt": 1, "generate": 2, "depth": 0},
            "decode_tok_s": {"median": 1, "mean": 1.0, "n": 1},
            **{"verdict": "VALID", "reasons": [], "trials": [{"warmup": False}]},
        }
    ],
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "p.json"


def saved(path, data):
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


@pytest.mark.parametrize("maker", [make_profile, failed_profile])
def test_written_profiles_read_back_equal(path, maker):
    made = maker()
    made["rows"][1]["gate"] = GATE
    profile = typed({**made, "argv": ["bench.py", "[\\n1, 2]"]})
    write(profile, path)
    assert ["gate" in row for row in json.loads(path.read_text())["rows"][:2]] == [False, True]
    assert read(path) == profile
    assert next(iter(json.loads(path.read_text()))) == "schema"
    assert re.search(r'"pass_begin_ns": \[\d+\],$', typed(make_profile()).to_json(), re.MULTILINE)
    row = msgspec.structs.replace(profile.rows[0], load_s=float("nan"))
    with pytest.raises(ValueError, match="JSON compliant"):
        msgspec.structs.replace(profile, rows=[row]).to_json()


@pytest.mark.parametrize("measured", MEASURED, ids=lambda path: path.name)
def test_measured_profiles_are_read_and_written_without_loss(measured, path):
    profile = read(measured)
    write(profile, path)
    wanted = json.loads(measured.read_text(encoding="utf-8"))
    for row in wanted["rows"]:
        row["workload"].setdefault("batch", 1)  # not in older files
    assert json.loads(path.read_text()) == wanted
    summary = msgspec.to_builtins(read_summary(measured))
    for row in (whole := msgspec.to_builtins(profile))["rows"]:
        del row["trials"], row["processes"]
    assert summary == whole


def test_the_schema_file_is_that_of_the_structs():
    """If it is not: python tools/write_profile_schema.py."""
    assert SCHEMA.read_text(encoding="utf-8") == text()
    schema = json.loads(text())
    Draft202012Validator.check_schema(schema)
    for measured in MEASURED:
        Draft202012Validator(schema).validate(json.loads(measured.read_text(encoding="utf-8")))


def changed(**values):
    """OLDEST with other values in its row."""
    return {**OLDEST, "rows": [{**OLDEST["rows"][0], **values}]}


def test_older_files_and_unknown_keys_are_read(path):
    row = read(saved(path, OLDEST)).rows[0]
    assert row.decode_tok_s == Quantity(median=1.0, mean=1.0, n=1)
    assert row.workload == Workload(1, 2, batch=1)
    newer = {**OLDEST, "new": {"x": 1}, "device": {"name": "x", "new": [None]}}
    assert read_summary(saved(path, newer)).device == Device("x")


@pytest.mark.parametrize("read_it", [read, read_summary])
@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"{", "not a profile", "is not JSON"),
        (b'{"x": ' + b"[" * 100_000, "not a profile", "is not JSON"),
        ([1], "not a profile", "no schema number"),
        ({"schema": True}, "not a profile", "no schema number"),
        ({"schema": 2}, "newer schema", "has a newer schema than 1, which this edge reads"),
        (b'{"schema": 1%s}' % (b"0" * 3000), "newer schema", "newer schema than 1"),
        ({"schema": 1}, "broken", "`created_utc`"),
        ({**OLDEST, "created_utc": "today"}, "broken", "$.created_utc"),
        (changed(verdict="FINE"), "broken", "$.rows[0].verdict"),
        (changed(file_bytes=10**400), "broken", "file_bytes"),
        (changed(workload={"batch": 0}), "broken", "$.rows[0].workload.batch"),
        (changed(load_s=1e300), "broken", "$.rows[0].load_s"),
    ],
)
def test_wrong_files_are_refused_in_one_sentence(path, read_it, data, kind, words):
    with pytest.raises(ProfileError, match=r"p\.json") as caught:
        read_it(saved(path, data))
    assert caught.value.kind == kind
    assert words in str(caught.value)
    assert str(caught.value).isprintable() and str(caught.value).endswith(".")


def test_broken_trials_are_refused_by_read_and_ignored_by_read_summary(path):
    saved(path, changed(trials=[{}]))
    with pytest.raises(EdgeError, match=r"\$\.rows\[0\]\.trials\[0\]"):
        read(path)
    assert len(read_summary(path).rows) == 1


@pytest.mark.parametrize(
    ("sentence", "about", "text"),
    [
        ("power_w, joules_per_token and their like: no meter", "power_w", "no meter"),
        ("quality was not measured", "quality", "quality was not measured"),
        ("it died: out of memory", "", "it died: out of memory"),
    ],
)
def test_reasons_are_parsed(sentence, about, text):
    found = Reason.parse(sentence)
    assert (found.about, found.text) == (about, text)
    assert Reason.parse(str(found)) == found


@pytest.mark.parametrize(
    ("workload", "name"),
    [
        (Workload(512, 128), "pp512, tg128"),
        (Workload(0, 128, 64, batch=1), "tg128 @ d64"),
        (Workload(512, 128, 64, batch=8), "pp512, tg128, npl8 @ d64"),
        (Workload(512, 128, joint=True, batch=8), "pp512+tg128, npl8"),
    ],
)
def test_workloads_have_llama_benchs_names(workload, name):
    assert str(workload) == name


def test_a_null_has_a_reason():
    reasons = ["too hot", "power_w: no meter", "decode drifts: see joules_per_token"]
    row = typed(changed(reasons=reasons)).rows[0]
    assert row.why_not("power_w") == "no meter"
    assert row.why_not("joules_per_token_net") == "decode drifts: see joules_per_token"
    assert row.why_not("quality") == "the profile does not say why"
    assert msgspec.structs.replace(row, verdict="INVALID").why_not("quality") == "too hot"


def test_windows_of_old_and_new_trials():
    old = Trial(warmup=False, ttft_s=1.0, token_ns=[5, 6, 9], prefill_begin_ns=1, prefill_end_ns=4)
    assert (old.prefills, old.passes) == ([(1, 4)], [(5, 9)])
    new = Trial(warmup=False, prefill_ns=[1, 2, 3, 4], pass_begin_ns=[5, 7], pass_end_ns=[6, 8])
    assert (new.prefills, new.passes) == ([(1, 2), (3, 4)], [(5, 6), (7, 8)])
