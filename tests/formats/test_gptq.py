import numpy as np
import pytest

from edge.formats import gptq as fmt
from tests.support.gptq_packer import Settings, pack_rows, quantise

BITS = pytest.mark.parametrize("bits", fmt.BITS)


@BITS
def test_a_stream_has_its_lowest_bits_first(bits):
    """The definition itself, in whole numbers of any length."""
    codes = np.random.RandomState(0).randint(0, 1 << bits, (1, 96)).astype(np.uint8)
    stream = sum(int(code) << bits * i for i, code in enumerate(codes[0]))
    words = [stream >> 32 * i & 0xFFFFFFFF for i in range(96 * bits // 32)]
    packed = fmt.pack(codes, bits)
    assert packed.tolist() == [words]
    assert np.array_equal(fmt.unpack(packed, bits), codes)


def test_blocks_join_without_a_seam(monkeypatch):
    weight = np.random.RandomState(0).standard_normal((64, 64))
    matrix = quantise(weight, Settings(4, 32), np.random.RandomState(1))
    packed, order = pack_rows(matrix.codes, 4), np.random.RandomState(2).permutation(64)
    whole = fmt.affine_codes(packed, 4, order, order)
    monkeypatch.setattr(fmt, "BLOCK_OUTPUTS", 7)
    assert np.array_equal(fmt.affine_codes(packed, 4, order, order), whole)
    assert np.array_equal(fmt.unpack(whole, 4), matrix.codes[order][:, order].T)
    dense = fmt.dequantise(packed, matrix.zeros, matrix.scales, matrix.group_of, 4, slice(1, 60))
    assert np.array_equal(dense, matrix.dense()[1:60])


@BITS
def test_symmetric_biases_are_exact_down_to_subnormal_scales(bits):
    scales = np.array([[6e-8, 1e-5, 0.0123, 1.0, 0.0]], np.float16)
    zeros = np.full(scales.shape, 1 << (bits - 1), np.uint8)
    biases, error = fmt.affine_biases(zeros, scales)
    assert error == 0
    assert np.array_equal(biases.astype(float), -scales.astype(float) * (1 << (bits - 1)))
