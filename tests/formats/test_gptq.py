import numpy as np
import pytest

from edge.formats import gptq as fmt
from tests.support.gptq_packer import Settings, pack_rows, quantise

BITS = pytest.mark.parametrize("bits", fmt.BITS)


def numbers(bits, shape, seed=0):
    return np.random.RandomState(seed).randint(0, 1 << bits, shape).astype(np.uint8)


def matrix_of(bits, size, **how):
    weight = np.random.RandomState(0).standard_normal((size, 64))
    return quantise(weight, Settings(bits, 32, **how), np.random.RandomState(1))


@BITS
def test_unpack_undoes_the_writers_loops(bits):
    codes = numbers(bits, (64, 5))
    packed = pack_rows(codes, bits)
    assert np.array_equal(fmt.unpack(fmt.words_by_output(packed, slice(None)), bits), codes.T)


@BITS
def test_a_stream_has_its_lowest_bits_first(bits):
    """The definition itself, in whole numbers of any length."""
    codes = numbers(bits, (1, 96))
    stream = sum(int(code) << bits * i for i, code in enumerate(codes[0]))
    words = [stream >> 32 * i & 0xFFFFFFFF for i in range(96 * bits // 32)]
    packed = fmt.pack(codes, bits)
    assert packed.tolist() == [words]
    assert np.array_equal(fmt.unpack(packed, bits), codes)


@BITS
def test_the_first_format_stores_one_less_and_wraps(bits):
    meant = (np.arange(32).reshape(1, 32) % (1 << bits)).astype(np.uint8)
    stored = (meant - 1) & np.uint8((1 << bits) - 1)
    assert np.array_equal(fmt.zero_points(stored, bits, "gptq"), meant)
    assert np.array_equal(fmt.zero_points(stored, bits, "gptq_v2"), stored)


@BITS
def test_symmetric_zero_points_show_their_format(bits):
    middle = 1 << (bits - 1)
    for value, form in ((middle - 1, "gptq"), (middle, "gptq_v2"), (0, None)):
        assert fmt.symmetric_format(np.full((2, 32), value, np.uint8), bits) == form
    mixed = np.full((2, 32), middle, np.uint8)
    mixed[1, 3] -= 1
    assert fmt.symmetric_format(mixed, bits) is None


@pytest.mark.parametrize(
    ("group_of", "size", "order"),
    [
        ([0, 0, 1, 1], 2, None),
        ([0] * 6, 6, None),
        ([1, 0, 1, 0], 2, [1, 3, 0, 2]),  # groups together, their inner order kept
    ],
)
def test_the_order_brings_groups_together(group_of, size, order):
    found_size, found = fmt.in_groups(np.array(group_of), max(group_of) + 1)
    assert found_size == size
    assert (found is None and order is None) or found.tolist() == order
    assert found is None or found.dtype == np.int32


@pytest.mark.parametrize("group_of", [[0, 0, 0, 1], [0, 0, 2, 2], [1, 1, 1, 1]])
def test_groups_of_different_sizes_have_no_order(group_of):
    assert fmt.in_groups(np.array(group_of), max(group_of) + 1) is None


@pytest.mark.parametrize(
    ("group", "mlx"),
    [(32, 32), (64, 64), (128, 128), (256, 128), (6912, 128), (96, 32), (16, None), (48, None)],
)
def test_a_group_is_cut_into_the_widest_that_mlx_has(group, mlx):
    assert fmt.mlx_group_size(group) == mlx


@BITS
def test_a_block_of_outputs_is_that_part_of_the_whole(bits):
    matrix = matrix_of(bits, 32, sym=False)
    parts = (pack_rows(matrix.codes, bits), matrix.zeros, matrix.scales, matrix.group_of, bits)
    for outputs in (slice(None), slice(3, 7), slice(30, 99), slice(5, 5), slice(9, 2)):
        assert np.array_equal(fmt.dequantise(*parts, outputs), matrix.dense()[outputs])


def test_blocks_join_without_a_seam(monkeypatch):
    matrix = matrix_of(4, 64)
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


def test_the_error_of_a_rounded_bias_is_counted_in_steps():
    scale = np.float16(1 + 2**-10)  # times 3: three more bits than float16 has
    biases, error = fmt.affine_biases(np.array([[3]], np.uint8), np.array([[scale]]))
    exact = -3 * float(scale)
    assert error == pytest.approx(abs(float(biases[0, 0]) - exact) / float(scale), rel=1e-6)
    assert error > 0
