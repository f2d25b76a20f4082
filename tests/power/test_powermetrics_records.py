"""Records and streams of the shapes that real powermetrics writes."""

import plistlib

import pytest

from edge.power.powermetrics_process import MAX_RECORD_BYTES, Framer, RecordStream
from edge.power.powermetrics_record import BadRecordError, read_plist_record
from tests.support.fake_powermetrics import CHIPS, record, stream


@pytest.mark.parametrize("chip", CHIPS)
def test_every_chip(chip):
    read = read_plist_record(record(3, 505_000_000, 2525, 36000, 12, chip))
    assert read.joules == {"CPU": 2.525, "GPU": 36.0, "ANE": 0.012}
    assert (read.elapsed_ns, read.thermal) == (505_000_000, "nominal")
    assert read.hw_model == CHIPS[chip][0]
    assert read.ended.isoformat() == "2026-10-04T23:07:07+00:00"


def test_energies_are_the_processors_not_the_gpus_own():
    data = record(gpu_mj=72607)
    assert plistlib.loads(data)["gpu"]["gpu_energy"] == 73491
    assert read_plist_record(data).joules["GPU"] == 72.607


def test_an_old_macos_has_dram_and_a_package_that_holds_all():
    dram = "<integer>500</integer><key>dram_power</key><real>1000</real>"
    package = "<integer>14000</integer><key>package_power</key><real>28000</real>"
    read = read_plist_record(record(combined_power=None, dram_energy=dram, package_energy=package))
    assert read.joules == {"CPU": 2.5, "GPU": 10.0, "ANE": 0.0, "DRAM": 0.5}
    assert read.beside == {"Package": 14.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cpu_energy": "<real>nan</real>"}, "not of 0 to 1000 W"),
        ({"cpu_energy": "<real>inf</real>"}, "not of 0 to 1000 W"),
        ({"cpu_energy": "<integer>-5</integer>"}, "not of 0 to 1000 W"),
        ({"cpu_energy": f"<integer>{'9' * 400}</integer>"}, "not of 0 to 1000 W"),
        ({"cpu_energy": f"<integer>{'9' * 9000}</integer>"}, "broken XML"),
        ({"cpu_energy": "<true/>"}, "no cpu_energy"),
        ({"cpu_energy": None}, "no cpu_energy"),
        ({"gpu_mj": 10**6}, "gpu_energy is not of 0 to 1000 W"),
        ({"extra": "<key>is_delta</key><false/>"}, "since boot"),
        ({"extra": "<key>elapsed_ns</key><integer>0</integer>"}, "no elapsed_ns"),
        ({"extra": "<key>elapsed_ns</key><true/>"}, "no elapsed_ns"),
        ({"extra": "<key>processor</key><array/>"}, "no processor"),
    ],
)
def test_what_cannot_be_true_is_not_believed(changes, words):
    with pytest.raises(BadRecordError, match=words):
        read_plist_record(record(**changes))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<plist/>",
        b"bplist00",
        b"<plist><dict><key>a</key></dict></plist>",
        b"<plist><dict><date>yesterday</date></dict></plist>",
        b"<plist><array/></plist>",
        b"<plist>" + b"<array>" * 50000 + b"</array>" * 50000 + b"</plist>",
        b'<?xml version="1.0" encoding="nonsense"?><plist><dict/></plist>',
        b'<!DOCTYPE plist [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>'
        b"<plist><string>&b;&b;&b;</string></plist>",
        b'<!DOCTYPE plist [<!ENTITY a SYSTEM "file:///etc/passwd">]><plist><string>&a;</string>'
        b"</plist>",
    ],
)
def test_hostile_records_are_refused(data):
    with pytest.raises(BadRecordError):
        read_plist_record(data)


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_a_record_is_whole_at_its_end_tag_however_it_arrives(size):
    records = [record(n, chip="M4") for n in range(3)]
    data = stream(records)
    reader, read = RecordStream(), []
    for begin in range(0, len(data.rstrip()), size):
        read += reader.feed(data.rstrip()[begin : begin + size])
    assert len(read) == 3  # the last one without a NUL behind it
    assert reader.complaints == []


def test_a_cut_record_takes_no_whole_one_with_it():
    first, second, third = (record(n) for n in range(3))
    reader = RecordStream()
    read = reader.feed(stream([first, second[:9000], third]))
    reader.finish()
    assert [r.follows_loss for r in read] == [False, True]
    assert reader.complaints == ["cut off or not a record"]


def test_a_truncated_tail_costs_the_tail():
    reader = RecordStream()
    read = reader.feed(stream([record(0), record(1)[:-12]]))
    reader.finish()
    assert len(read) == 1
    assert reader.complaints


def test_an_endless_record_is_not_kept():
    framer = Framer()
    list(framer.feed(b"<?xml"))
    for _ in range(40):
        assert list(framer.feed(b"x" * (1 << 16))) == []
    assert len(framer._buffer) <= MAX_RECORD_BYTES
    assert framer.discarded_bytes > MAX_RECORD_BYTES
    whole = record()
    assert list(framer.feed(b"</plist>" + whole)) == [whole.rstrip()]
