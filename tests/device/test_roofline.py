from dataclasses import replace

import pytest

from edge.device.describe import Bandwidth, Device
from edge.device.roofline import ceiling_tok_s, fraction, fraction_on


def test_the_reports_two_readings_of_its_chip():
    """5.6 GB per token: 36.6 tok/s on an M2 Pro, 73 on an M2 Max."""
    assert ceiling_tok_s(5.6e9, 204.8e9) == pytest.approx(36.57, abs=0.01)
    assert ceiling_tok_s(5.6e9, 409.6e9) == pytest.approx(73.14, abs=0.01)


def test_a_fraction_needs_no_words():
    assert fraction(28.0, 5.6e9, 204.8e9) == (pytest.approx(0.7656, abs=1e-4), None)


def test_the_ceiling_itself_is_possible():
    assert fraction(2.0, 1e9, 2e9) == (1.0, None)


def test_above_the_ceiling_the_measurement_is_wrong():
    reached, why = fraction(53.0, 5.6e9, 204.8e9)
    assert reached == pytest.approx(1.449, abs=1e-3)
    assert "296.8 GB/s, 145% of the 204.8 GB/s" in why and "--bandwidth-gb-s" in why


def test_what_fits_in_the_cache_has_no_ceiling():
    reached, why = fraction(4000.0, 4e6, 10e9, cache_bytes=32_000_000)
    assert reached is None
    assert "4 MB fit in the cache of 32 MB" in why


@pytest.mark.parametrize(("size", "speed"), [(0, 1e9), (1e9, 0), (-1, 1e9)])
def test_nonsense_is_refused(size, speed):
    with pytest.raises(ValueError):
        ceiling_tok_s(size, speed)


# --- on a device

PC = Device(
    name="PC",
    architecture="x86_64",
    physical_cores=8,
    logical_cores=16,
    memory_bytes=2**36,
    os="Linux 6.18",
    memory_bandwidth=Bandwidth(50.0, "measured read"),
    gpu_memory_bandwidth=Bandwidth(1000.0, "driver"),
    cache_bytes=32_000_000,
)


@pytest.mark.parametrize(("on_gpu", "reached"), [(False, 0.8), (True, 0.04)])
def test_a_gpu_with_its_own_memory_has_its_own_ceiling(on_gpu, reached):
    assert fraction_on(PC, on_gpu, 20.0, 2e9) == (pytest.approx(reached), None)


def test_unified_memory_has_one_ceiling():
    mac = replace(PC, gpu_memory_bandwidth=None)
    assert fraction_on(mac, True, 20.0, 2e9) == fraction_on(mac, False, 20.0, 2e9)


def test_caches_differ_too():
    assert fraction_on(PC, True, 20.0, 1e8)[0] is None
    assert fraction_on(PC, False, 20.0, 1e8)[0] is not None


@pytest.mark.parametrize(("remarks", "words"), [(("no M9 yet",), "no M9 yet"), ((), "is known")])
def test_an_unknown_bandwidth_is_a_reason(remarks, words):
    unknown = replace(PC, memory_bandwidth=None, remarks=remarks)
    reached, why = fraction_on(unknown, False, 20.0, 2e9)
    assert reached is None and why.startswith("bandwidth_fraction: ") and words in why
