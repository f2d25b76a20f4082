"""The most memory that a process had."""

import ctypes
import resource
import struct

import pytest

from edge.device import peak


def test_on_linux_it_is_this_programs_own():
    assert peak.peak_metric() == "VmHWM"
    held = bytearray(64 << 20)
    assert 64 << 20 < peak.peak_bytes() < 1 << 40
    del held


@pytest.fixture
def on_a_mac(monkeypatch):
    """A system library whose call fills the structure as macOS does, or fails."""

    def patch(status):
        class System:
            @staticmethod
            def proc_pid_rusage(pid, flavour, info):
                assert flavour == 4
                fields = list(range(35))
                fields[28] = 5_000_000_000
                data = struct.pack("<16s35Q", b"uuid", *fields)
                ctypes.memmove(info, data, len(data))
                return status

        monkeypatch.setattr(peak.platform, "system", lambda: "Darwin")
        monkeypatch.setattr(peak.ctypes, "CDLL", lambda name: System)

    return patch


def test_on_a_mac_it_is_the_footprint_with_what_metal_holds(on_a_mac):
    on_a_mac(status=0)
    assert peak.peak_metric() == "lifetime maximum physical footprint"
    assert peak.peak_bytes() == 5_000_000_000


def test_without_it_there_is_still_the_resident_memory(on_a_mac):
    on_a_mac(status=-1)
    assert peak.peak_bytes() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes there
