import json
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator

from edge.bench.row import Context, build_row
from edge.device.describe import Bandwidth, Device
from edge.profile.profile import ModelInfo, Profile, write_profile
from edge.profile.reading import read_profile
from tests.bench.fakes import NS, trial
from tests.bench.test_row import JOB, SUBJECT, THREE, Watts, process, samples_of
from tests.support.profiles import ROOT, SCHEMA, faults

PROFILE = Profile(
    created_utc="2026-01-01T00:00:00+00:00",
    argv=["bench.py", "[\\n1, 2]"],
    device=Device("Apple M2", "arm64", 8, 8, 16 << 30, "macOS 27.0"),
    software={"edge": "0"},
    model=ModelInfo("demo", "demo", None, 5, False),
    method={"stamps": [1, 22, 333], "none": [], "mixed": [1, "a"]},
)


def test_what_is_written_reads_back_the_same(tmp_path):
    path = tmp_path / "new" / "profile.json"
    write_profile(PROFILE, path)
    assert json.loads(path.read_text()) == json.loads(json.dumps(PROFILE.to_dict()))
    assert next(iter(json.loads(path.read_text()))) == "schema"


def test_stamps_share_a_line():
    assert '"stamps": [1,22,333]' in PROFILE.to_json()


def test_a_number_that_json_does_not_have_is_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        replace(PROFILE, method={"x": float("nan")}).to_json()


# --- the schema


def test_the_schema_is_one():
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "profiles" / "measured").glob("*.json")), ids=lambda p: p.name
)
def test_every_profile_in_the_repository_is_valid(path):
    assert faults(json.loads(path.read_text(encoding="utf-8"))) == []
    read_profile(path)


ROWS = {
    "plain": build_row(SUBJECT, JOB, [process(THREE)]),
    "with energy": build_row(
        SUBJECT,
        JOB,
        [process(THREE, meter=Watts("a flag"), samples=samples_of(7.0))],
        Context(device=replace(PROFILE.device, memory_bandwidth=Bandwidth(100.0, "table, Apple"))),
    ),
    "failed": build_row(SUBJECT, JOB, [process([], failure="it died", facts=None, load_s=None)]),
}


@pytest.mark.parametrize("name", ROWS)
def test_what_is_written_is_valid(name):
    profile = json.loads(replace(PROFILE, rows=[ROWS[name]]).to_json())
    assert faults(profile) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p.pop("device"),
        lambda p: p.update(schema=2),
        lambda p: p["rows"][0].update(verdict="FINE"),
        lambda p: p["rows"][0].update(decode_tok_s={"median": 1.0}),
        lambda p: p["rows"][0].update(power_w=0),
        lambda p: p["rows"][0]["trials"][0].pop("token_us"),
        lambda p: p["rows"][0]["trials"][0]["decode_energy"].update(coverage=1.5),
    ],
)
def test_what_is_no_profile_is_not(spoil):
    profile = json.loads(replace(PROFILE, rows=[ROWS["with energy"]]).to_json())
    spoil(profile)
    assert faults(profile)


def test_a_profile_of_five_rows_stays_below_a_megabyte():
    """Windows of 4500 tokens, as a fast model fills 3 s with: six trials of each row."""
    trials = [replace(trial(i), passes_ns=_passes(i)) for i in range(6)]
    row = build_row(SUBJECT, JOB, [process(trials, meter=Watts(), samples=samples_of(7.0, 700))])
    size = len(replace(PROFILE, rows=[row] * 5).to_json())
    assert 100_000 < size < 1_000_000


def _passes(number):
    start = number * 100 * NS + 5 * NS
    return tuple(tuple(start + (one * 500 + i) * 660_000 for i in range(500)) for one in range(9))
