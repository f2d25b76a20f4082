"""`edge bench --each` and `edge eval` in processes of mlx.launch."""

import json
from argparse import Namespace

import pytest

from edge.cli.fleet import Device, Fleet, Report, _collected, busy_with
from edge.distributed import Lost
from edge.errors import EdgeError
from edge.profile.profile import read
from tests.support.ranks import launch

BENCH = "-p 16 -n 4 -r 1 --min-window 0 --cooldown 0 --power none --no-check --bandwidth-gb-s 10"


def test_every_rank_measures_itself_and_rank_0_compares(demo_out, tmp_path):
    words = ["bench", "demo", "--rows", "mlx-int4", "--out", demo_out, *BENCH.split()]
    out, err = launch("-m", "edge", *words, "--each", "-o", "json", cwd=tmp_path)
    assert out, err
    document = json.loads(out)
    assert sorted(row["device"][:2] for row in document["rows"]) == ["1:", "2:"], err
    local = tmp_path / "profiles" / "local"
    (folder,) = local.glob("*-devices")
    files = sorted(folder.glob("*.json"))
    profiles = [read(file) for file in files]
    assert [profile.method.fleet_number for profile in profiles] == [1, 2]
    assert [file.name[:2] for file in files] == ["1-", "2-"]
    assert all("1 more of --each" in str(p.rows[0].reasons) for p in profiles)
    assert len(list(local.glob("*.json"))) == 2  # each rank's own
    assert (folder / "devices.md").read_text().startswith("# 2 devices compared")
    assert err.count("waiting up to") == 1


def test_each_is_for_several_machines(command):
    line = command.refused("bench", "demo", "--each")
    assert line.endswith("edge bench ... --each, or leave it out.")


@pytest.mark.parametrize(
    ("error", "joins", "is_reported"),
    [
        (EdgeError("the disk is full."), True, True),
        (MemoryError(), True, True),
        (EdgeError("no such model."), False, False),  # nothing is measured anywhere
    ],
)
def test_a_device_that_fails_while_it_measures_reports_that(error, joins, is_reported, tmp_path):
    fleet = Fleet(tmp_path)

    def measure(join):
        if joins:
            join([])
        raise error

    if is_reported:
        assert fleet.report(measure) == Report(failure=str(error) or "MemoryError")
    else:
        with pytest.raises(EdgeError, match="no such model"):
            fleet.report(measure)


@pytest.mark.parametrize(
    ("others", "launcher", "words"),
    [(0, 0.01, []), (2, 0.0, ["2 more of --each"]), (0, 0.98, ["mlx.launch takes 98% of a core"])],
)
def test_what_else_a_machine_is_busy_with_is_said(others, launcher, words):
    found = list(busy_with(others, launcher))
    assert [sentence.startswith(word) for sentence, word in zip(found, words, strict=True)] == [
        True for _ in words
    ]


def test_nothing_is_compared_where_every_device_failed(tmp_path, capsys):
    reports = [Report(failure="the disk is full."), Report(failure="no memory.")]
    assert _collected(Namespace(save=tmp_path), ["mac-1", "mac-2"], reports) == 1
    assert "mac-2 failed: no memory." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(143), Lost("mac-2 has ended.")])
def test_the_folders_of_all_devices_are_named_at_a_bad_end(end, capsys):
    fleet = Fleet(None, [Device("mac-1", 1.0, "/a"), Device("mac-2", 2.0, "/b")])
    with pytest.raises(type(end)), fleet.naming_folders():
        raise end
    assert "is in mac-1:/a, mac-2:/b; copy it with scp" in capsys.readouterr().err
