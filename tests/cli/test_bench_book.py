"""The profile of a run is complete after every process, and nothing is computed twice for it."""

import pytest

import edge.bench.energy
import edge.bench.row
from edge.bench.job import Job
from edge.bench.rounds import ProcessRun, Results
from edge.bench.row import Subject
from edge.bench.runner import Outcome
from edge.bench.workload import Workload
from edge.cli.bench_book import Book
from edge.device.describe import Bandwidth, Device
from edge.device.state import State
from edge.profile.profile import Method, ModelInfo, Profile
from edge.profile.reading import read_profile
from tests.bench.fakes import FACTS, FakeClock, FakeMeter, samples_of, trial

DEVICE = Device("PC", "x86_64", 8, 16, 2**36, "Linux", memory_bandwidth=Bandwidth(70.0, "given"))


@pytest.fixture
def book(tmp_path):
    """Two rows, of which nothing is measured yet."""
    job = Job("mlx", "x", Workload(10, 3), 50, 0, 1, 1, 2)
    rows = [(job, Subject(name, "MLX", "INT4", 1000, 4.5)) for name in ("first", "second")]
    model = ModelInfo("demo", "demo", None, 5, False)
    profile = Profile(
        schema=1,
        created_utc="2026-01-01T00:00:00+00:00",
        device=DEVICE,
        software={"edge": "1"},
        model=model,
        method=Method(),
        rows=[],
    )
    return Book(profile, rows, Results([[0, 1], [1, 0]], [[], []]), tmp_path)


def measure(book, row, number):
    """One more process of a row: two trials, each with two windows of energy."""
    trials = [trial(1, round_number=number), trial(2, round_number=number)]
    outcome = Outcome(book.rows[row][0], load_s=0.5, facts=FACTS, trials=trials)
    meter = FakeMeter(FakeClock())
    book.results.runs[row].append(
        ProcessRun(number, outcome, meter, samples_of(7.0), State(), State())
    )
    book.enter(row)


@pytest.fixture
def calls(monkeypatch):
    """The rows that are built and the windows that are integrated."""
    built, integrated = [], []
    build_row, integrate = edge.bench.row.build_row, edge.bench.energy.integrate

    def spied_build(subject, *rest):
        built.append(subject.artefact)
        return build_row(subject, *rest)

    def spied_integrate(samples, *window):
        integrated.append(window)
        return integrate(samples, *window)

    monkeypatch.setattr("edge.cli.bench_book.build_row", spied_build)
    monkeypatch.setattr(edge.bench.energy, "integrate", spied_integrate)
    return built, integrated


def test_only_the_row_that_changed_is_built_and_each_window_integrated_once(book, calls):
    built, integrated = calls
    for number, order in enumerate(book.results.order):
        for row in order:
            measure(book, row, number)
    assert built == ["first", "second", "second", "first"]
    assert len(integrated) == 4 * 2 * 2
    book.close()
    assert built[4:] == ["first", "second"]
    assert len(integrated) == 16


def test_the_file_has_every_row_measured_so_far_in_their_order(book):
    measure(book, 1, 0)
    assert [row["artefact"] for row in read_profile(book.path)["rows"]] == ["second"]
    measure(book, 0, 0)
    rows = read_profile(book.path)["rows"]
    assert [row["artefact"] for row in rows] == ["first", "second"]
    assert [row["power_w"]["median"] for row in rows] == pytest.approx([7.0, 7.0])


def test_what_is_known_at_the_end_is_in_every_row(book):
    measure(book, 0, 0)
    measure(book, 1, 0)
    book.add_quality(None, "quality: it died")
    for row in read_profile(book.path)["rows"]:
        assert "quality: it died" in row["reasons"]
