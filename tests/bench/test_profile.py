import json
from dataclasses import replace

import pytest

from edge.bench.profile import ModelInfo, Profile, write_profile
from edge.device.describe import Device

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
