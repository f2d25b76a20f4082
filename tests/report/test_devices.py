import copy
import json
import re
from itertools import product
from pathlib import Path

import pytest

from edge.profile.imported import Told, import_results
from edge.report.devices import compare_devices, devices_tables, devices_text
from tests.support.foreign_results import llama_bench
from tests.support.profiles import hostile_profile, make_profile

NAMES = ("mlx-fp16", "mlx-int4", "gguf-f16", "gguf-q6_k")
OLD, NEW = "2026-03-01T10:00:00+00:00", "2026-04-01T10:00:00Z"


@pytest.fixture
def folder(tmp_path):
    """Writes profiles, or bytes, as files of a folder and returns it."""

    def put(**files):
        for name, content in files.items():
            path = tmp_path / "profiles" / f"{name.replace('__', '/')}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            path.write_bytes(data)
        return tmp_path / "profiles"

    return put


def several(chip="Apple M2 Max", **options):
    options = {"artefacts": NAMES, "created": OLD, "generate": 4, "processes": 1, **options}
    return make_profile(chip, samples=0, **options)


def one(**options):
    return several(artefacts=("mlx-int4",), **options)


def test_rows_are_sorted_by_speed_of_device_then_by_name(folder):
    found = compare_devices(folder(a=several("Apple M2"), deep__er__b=several("Apple M4")))
    names = ["GGUF FP16", "GGUF Q6_K", "MLX FP16", "MLX INT4"]
    order = [(row["device"][:8], f"{row['framework']} {row['precision']}") for row in found.rows]
    assert order == list(product(("Apple M4", "Apple M2"), names))  # the faster one first
    assert (found.files, found.profiles, found.left_out) == (2, 2, [])
    assert {row["file"] for row in found.rows} == {"a.json", "deep/er/b.json"}


def test_medians_are_normalised_to_bandwidth_and_energy_and_missing_ones_are_dashes(folder):
    profile = one(chip="Apple M2")
    profile["rows"].append({**profile["rows"][0], "arm": "mlx 0.31"})  # of --vs: not shown
    (row,) = compare_devices(folder(a=profile)).rows
    source, _ = profile["rows"]
    assert row["joules_per_token"] == source["joules_per_token"]["median"]
    assert row["decode_per_gb_s"] == pytest.approx(source["decode_tok_s"]["median"] / 102.4)
    assert row["tok_per_joule"] == pytest.approx(1 / source["joules_per_token"]["median"])
    assert (row["peak_memory_bytes"], row["n"]) == (source["peak_memory_bytes"], 2)
    own = {"gb_s": 4800.0, "source": "driver"}
    profile["device"] |= {"gpu_name": "NVIDIA H200", "gpu_memory_bandwidth": own}
    source["engine_facts"]["device"] = "NVIDIA H200"
    (row,) = compare_devices(folder(a=profile)).rows
    assert row["bandwidth_gb_s"] == 4800.0 and "NVIDIA H200" in row["device"]
    source.update(joules_per_token=None, bandwidth_fraction=None, peak_memory_bytes=None)
    profile["device"] |= {"memory_bandwidth": None, "gpu_memory_bandwidth": None}
    (table,) = devices_tables(compare_devices(folder(a=profile)))
    assert table.rows[0].count("—") == 4


def test_of_several_runs_of_one_device_the_newest_valid_one_is_shown(folder):
    newest = one(created="2026-05-01T10:00:00Z", rate=0.5)
    newest["rows"][0] |= {"verdict": "WARN", "reasons": ["too hot"]}
    put = folder(old=one(created=OLD, rate=1.5), new=one(created=NEW), newest=newest)
    (row,) = compare_devices(put).rows
    assert (row["file"], row["runs"], row["others"]) == ("new.json", 3, ["old.json", "newest.json"])
    assert row["lowest_tok_s"] < row["decode_tok_s"] < row["highest_tok_s"]
    assert " to " in devices_tables(compare_devices(put))[0].rows[0][-1]
    (put / "new.json").unlink()
    (put / "old.json").unlink()
    assert [row["verdict"] for row in compare_devices(put).rows] == ["WARN"]


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["device"].update(gpu_cores=30),
        lambda p: p["device"].update(memory_bytes=2**35),
        lambda p: p["rows"][0]["engine_facts"].update(device="CPU"),
        lambda p: p["rows"][0]["engine_facts"].update(compute_dtype="float32"),
        lambda p: p["rows"][0].update(engine="mlx-lm"),
        lambda p: p["model"].update(synthetic=True),
        lambda p: p["rows"][0]["workload"].update(depth=4096),
        lambda p: p["method"].update(decode_rate="another"),
        lambda p: p["method"].update(excluded=["load"]),
    ],
)
def test_measurements_of_different_things_are_not_pooled(folder, change):
    other = copy.deepcopy(one(created=NEW))
    change(other)
    rows = compare_devices(folder(a=one(created=OLD), b=other)).rows
    assert [row["runs"] for row in rows] == [1, 1]


def test_tables_are_per_method_with_a_matrix_for_several_devices_and_precisions(folder):
    other = one(chip="Apple M4")
    other["method"]["decode_rate"] = "N / t"
    same = one(chip="Apple M2")
    same["method"]["excluded"].reverse()
    found = compare_devices(folder(a=one(), b=same, c=other))
    title = "stable-code-3b, 2795 M parameters, pp512, tg4"
    assert [table.title for table in devices_tables(found)] == [title, f"{title}, method 2"]
    assert "2. rate = N / t; left out: detokenisation, load" in devices_text(found)
    put = folder(a=several("Apple M2"), b=several("Apple M4", artefacts=("mlx-int4",)))
    (put / "c.json").unlink()
    matrix, detail = devices_tables(compare_devices(put))
    assert matrix.columns == ["Device", "GGUF FP16", "GGUF Q6_K", "MLX FP16", "MLX INT4"]
    (m4,) = [line for line in matrix.rows if line[0].startswith("Apple M4")]
    assert m4[1:4] == ["", "", ""] and float(m4[4]) > 0
    assert matrix.remarks == ["Empty cells were not measured."]
    assert len(detail.rows) == 5


def test_other_programs_results_stand_beside_ours_and_are_marked(folder):
    ours = make_profile(artefacts=("gguf-q4_0", "gguf-q6_k"), samples=0)
    ours["method"]["excluded"].append("trimming the cache")
    theirs = import_results(llama_bench(), Path("l.json"), Told(on_mains=True)).to_json()
    found = compare_devices(folder(a=ours, b=theirs.encode()))
    (table,) = [table for table in devices_tables(found) if "Runs" in table.columns]
    names = {line[1]: line[-1] for line in table.rows}
    assert names == {"GGUF Q6_K": "1", "GGUF Q4_0 (llama-bench)": "1"}
    assert {row["precision"]: row["source"] for row in found.rows} == {
        **{"Q6_K": None, "Q4_0": "llama-bench"}
    }


def test_filters_match_parts_of_names_in_any_case(folder):
    m4 = one(chip="Apple M4")
    put = folder(a=one(chip="Apple M2"), b=one(chip="Apple M4", model="stablelm-2-1_6b"), c=m4)
    found = compare_devices(put, chip="m4", model="Stable-CODE")
    assert [row["file"] for row in found.rows] == ["c.json"]
    assert (found.files, found.profiles, found.filtered_out) == (3, 1, 2)
    assert '2 others did not match chip "m4", model "Stable-CODE"' in devices_text(found)


def test_copies_of_a_run_are_counted_once(folder):
    profile = one()
    short = {**profile, "rows": [], "method": {**profile["method"], "finished": False}}
    found = compare_devices(folder(a=profile, b=profile, c=short, d=one(created=NEW)))
    assert [row["runs"] for row in found.rows] == [2]
    why = "is of the same run as a.json: device, model and time"
    assert {entry.file: entry.reason for entry in found.left_out} == {"b.json": why, "c.json": why}


def test_equal_devices_of_one_fleet_have_their_numbers(folder):
    profiles = [one(), one()]
    for number, profile in enumerate(profiles, 1):
        profile["method"]["fleet_number"] = number
    found = compare_devices(folder(a=profiles[0], b=profiles[1]))
    assert [(row["device"][:2], row["runs"]) for row in found.rows] == [("1:", 1), ("2:", 1)]
    assert found.left_out == []
    (alone,) = compare_devices(folder(a=profiles[0], b=profiles[0])).rows
    assert not alone["device"].startswith("1:")


def test_invalid_and_impossible_rows_are_left_out_with_their_reason(folder):
    profile = several()
    rows = profile["rows"]
    rows[0] |= {"verdict": "INVALID", "reasons": ["it crashed"]}
    rows[1]["bandwidth_fraction"] = 1.2
    rows[2] |= {"decode_tok_s": None, "prefill_tok_s": None, "reasons": ["no tokens"]}
    found = compare_devices(folder(a=profile, b={**one(created=NEW), "rows": []}))
    assert [row["artefact"] for row in found.rows] == ["gguf-q6_k"]
    left_out = {entry.kind: entry.reason for entry in found.left_out}
    assert left_out["no rows"] == "has no rows: its run was stopped before the first"
    assert left_out["invalid"] == "mlx-fp16 on mlx (pp512, tg4) is INVALID: it crashed"
    assert left_out["impossible"].startswith("mlx-int4 on mlx (pp512, tg4) reads faster than")
    assert left_out["not measured"].endswith("neither a decode nor a prefill rate: no tokens")
    profile["device"]["memory_bandwidth"]["source"] = "measured read"  # may be too low
    assert len(compare_devices(folder(a=profile)).rows) == 2


def test_hostile_names_are_escaped(folder):
    profile = hostile_profile(several())
    other = copy.deepcopy(profile)
    other["rows"][0]["verdict"] = "INVALID"
    other["created_utc"] = NEW
    text = devices_text(compare_devices(folder(a=profile, b=other)))
    assert "script" in text
    assert all(c.isprintable() or c == "\n" for c in text)
    assert not re.search(r"(?<!\\)[<>`\[\]]", text)
    assert max(map(len, text.splitlines())) < 1200
