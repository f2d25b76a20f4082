import copy
import json

import pytest

from edge.errors import EdgeError
from edge.profile.reading import read_profile

QUANTITY = {"median": 1.0, "mean": 1.0, "sd": None, "n": 1}
ROW = {
    "artefact": "mlx-int4",
    "engine": "mlx",
    "framework": "MLX",
    "precision": "INT4",
    "workload": {"prompt": 1, "generate": 2, "depth": 0},
    "decode_tok_s": QUANTITY,
    "verdict": "VALID",
    "reasons": [],
    "trials": [{"warmup": False}],
}
PROFILE = {
    "schema": 1,
    "created_utc": "2026-01-01T00:00:00+00:00",
    "device": {"name": "Apple M2"},
    "software": {"edge": "0.1"},
    "model": {"name": "demo"},
    "method": {},
    "rows": [ROW],
}


def read(tmp_path, data):
    path = tmp_path / "p.json"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return read_profile(path)


def test_a_profile_is_plain_data_with_what_nobody_knows_kept(tmp_path):
    data = {**PROFILE, "new": {"x": 1}}
    assert read(tmp_path, data) == data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is no profile"),
        (b"{", "is no profile"),
        (b"\xff", "is no profile"),
        (b"[" * 5000, "is no profile"),
        ([1], "no schema number"),
        ({"a": 1}, "no schema number"),
        ({"schema": "1"}, "its schema is '1'"),
        ({"schema": True}, "its schema is 'True'"),
        ({"schema": 0}, "its schema is '0'"),
        ({"schema": 2}, "has schema 2 and this edge reads up to 1: install a newer edge"),
        ({"schema": 1}, "created_utc is missing"),
    ],
)
def test_what_is_no_profile_is_refused_in_a_sentence(tmp_path, data, words):
    with pytest.raises(EdgeError, match=r"p\.json") as error:
        read(tmp_path, data)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: p.update(rows={}), "rows is of the wrong kind"),
        (lambda p: p.update(device={}), "device has no name"),
        (lambda p: p.update(model={"name": 1}), "model has no name"),
        (lambda p: p["rows"].append(1), "row 2: it is no object"),
        (lambda p: p["rows"][0].pop("engine"), "row 1: engine is missing"),
        (lambda p: p["rows"][0].update(decode_tok_s={"median": "x"}), "decode_tok_s is no"),
        (lambda p: p["rows"][0].update(power_w=0), "power_w is no quantity"),
        (lambda p: p["rows"][0].update(trials=[{}]), "a trial is broken"),
    ],
)
def test_a_broken_one_is_refused_with_what_is_broken(tmp_path, spoil, words):
    data = copy.deepcopy(PROFILE)
    spoil(data)
    with pytest.raises(EdgeError, match="broken") as error:
        read(tmp_path, data)
    assert words in str(error.value)


def test_what_is_not_there_or_no_file_is_refused(tmp_path):
    with pytest.raises(EdgeError, match="is missing"):
        read_profile(tmp_path / "no.json")
    with pytest.raises(EdgeError, match="is no file"):
        read_profile(tmp_path)
