from dataclasses import replace
from unittest.mock import Mock

import pytest

from edge.bench import writer as module
from edge.bench.row import build_row
from edge.bench.runner import Run
from edge.bench.writer import ProfileWriter
from edge.errors import EdgeError
from edge.profile.profile import Method, Profile, read
from tests.bench.fakes import JOB, MODEL, PC, TARGET, context, process, samples_of, trial_at, worked


@pytest.fixture
def writer(tmp_path):
    """A writer of two rows without measurements."""
    profile = Profile(
        schema=1,
        created_utc="2026-01-01T00:00:00+00:00",
        device=PC,
        software={"edge": "1"},
        model=MODEL,
        method=Method(),
        rows=[],
    )
    return ProfileWriter(profile, Run([JOB] * 2, 2, None), [TARGET] * 2, tmp_path, context(2))


def measure(writer, row, number, seconds_per_token=1.0):
    trials = [trial_at(i, seconds_per_token) for i in (1, 2)]
    run = process(trials, number, worked(), samples_of(7.0))
    writer.run.runs[row].append(run)
    writer.update(row)


def test_only_the_row_that_changed_is_built(writer, monkeypatch):
    built = []

    def spied(target, job, runs, context):
        built.append(len(runs))
        return build_row(target, job, runs, context)

    monkeypatch.setattr(module, "build_row", spied)
    measure(writer, 0, 0)
    measure(writer, 1, 0)
    measure(writer, 1, 1)
    assert built == [1, 1, 2]
    writer.finish()
    assert built[3:] == [1, 2]


def test_runs_of_the_same_second_have_files_of_their_own(writer):
    writers = [writer, *(replace(writer, _built={}) for _ in range(2))]
    for each in writers:
        assert not each.is_saved
        measure(each, 0, 0)
    names = [f"20260101T000000Z-demo{suffix}.json" for suffix in ("", "-2", "-3")]
    assert [each.path.name for each in writers] == names
    assert sorted(path.name for path in writer.folder.iterdir()) == sorted(names)
    measure(writers[1], 0, 1)
    assert writers[1].path.name == names[1]


def test_a_profile_that_cannot_be_written_leaves_no_file(writer, monkeypatch):
    monkeypatch.setattr(module, "write", Mock(side_effect=EdgeError("the disk is full")))
    with pytest.raises(EdgeError, match="full"):
        measure(writer, 0, 0)
    assert list(writer.folder.iterdir()) == []


def test_the_file_has_every_row_measured_so_far_in_the_order_of_the_plan(writer):
    measure(writer, 1, 0, seconds_per_token=2.0)
    assert writer.path.name == "20260101T000000Z-demo.json"
    assert len(read(writer.path).rows) == 1
    measure(writer, 0, 0)
    profile = read(writer.path)
    assert [row.decode_tok_s.median for row in profile.rows] == [1.0, 0.5]
    assert [row.power_w.median for row in profile.rows] == pytest.approx([7.0, 7.0])
    assert profile.method.order == [["mlx-int4 on mlx, pp10, tg3 @ d100"] * 2] * 2
    assert profile.method.finished is False
    assert profile.method.idle["net_of_w"] is None
    assert all("quality was not measured: add --quality" in row.reasons for row in profile.rows)
    writer.add_quality(None, "quality: it died")
    assert all("quality: it died" in row.reasons for row in read(writer.path).rows)
