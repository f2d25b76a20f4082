import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.formats import gptq as fmt
from tests.support.gptq_packer import Settings, pack_rows, quantise

BITS = pytest.mark.parametrize("bits", fmt.BITS)


def numbers(bits, shape, seed=0):
    return np.random.RandomState(seed).randint(0, 1 << bits, shape).astype(np.uint8)


@BITS
def test_unpack_undoes_the_writers_loops(bits):
    codes = numbers(bits, (64, 5))
    packed = pack_rows(codes, bits)
    assert np.array_equal(fmt.unpack(fmt.words_by_output(packed, slice(None)), bits), codes.T)
    assert np.array_equal(fmt.zero_points(pack_rows(codes, bits).T, bits, "gptq_v2"), codes.T)


@BITS
def test_a_stream_has_its_lowest_bits_first(bits):
    """The definition itself, in whole numbers of any length."""
    codes = numbers(bits, (1, 96))
    stream = sum(int(code) << bits * i for i, code in enumerate(codes[0]))
    words = [stream >> 32 * i & 0xFFFFFFFF for i in range(96 * bits // 32)]
    assert fmt.pack(codes, bits).tolist() == [words]


@given(st.sampled_from(fmt.BITS), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_pack_undoes_unpack(bits, rows, blocks, seed):
    words = np.random.RandomState(seed).randint(0, 2**32, (rows, blocks * bits), dtype=np.uint64)
    words = words.astype(np.uint32)
    assert np.array_equal(fmt.pack(fmt.unpack(words, bits), bits), words)


@BITS
def test_the_first_format_stores_one_less_and_wraps(bits):
    meant = np.arange(32).reshape(1, 32) % (1 << bits)
    stored = pack_rows(((meant - 1) & ((1 << bits) - 1)).T, bits).T
    assert np.array_equal(fmt.zero_points(stored, bits, "gptq"), meant)
    assert fmt.zero_points(stored, bits, "gptq_v2")[0, 0] == (1 << bits) - 1


@BITS
def test_symmetric_zero_points_show_their_format(bits):
    middle = 1 << (bits - 1)
    for value, form in ((middle - 1, "gptq"), (middle, "gptq_v2"), (0, None)):
        assert fmt.symmetric_format(np.full((2, 32), value, np.uint8), bits) == form
    mixed = np.full((2, 32), middle, np.uint8)
    mixed[1, 3] -= 1
    assert fmt.symmetric_format(mixed, bits) is None


def test_groups_in_turn_need_no_order():
    assert fmt.in_groups(np.array([0, 0, 1, 1]), 2) == (2, None)
    assert fmt.in_groups(np.zeros(6, int), 1) == (6, None)


def test_the_order_brings_groups_together_and_keeps_their_inner_order():
    size, order = fmt.in_groups(np.array([1, 0, 1, 0]), 2)
    assert size == 2
    assert order.tolist() == [1, 3, 0, 2]
    assert order.dtype == np.int32


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
    matrix = quantise(
        np.random.RandomState(0).standard_normal((32, 64)),
        Settings(bits, 32, sym=False),
        np.random.RandomState(1),
    )
    parts = (pack_rows(matrix.codes, bits), matrix.zeros, matrix.scales, matrix.group_of, bits)
    for outputs in (slice(None), slice(3, 7), slice(30, 99), slice(5, 5), slice(9, 2)):
        assert np.array_equal(fmt.dequantise(*parts, outputs), matrix.dense()[outputs])


def test_blocks_join_without_a_seam(monkeypatch):
    matrix = quantise(
        np.random.RandomState(0).standard_normal((64, 64)), Settings(), np.random.RandomState(1)
    )
    packed = pack_rows(matrix.codes, 4)
    order = np.random.RandomState(2).permutation(64)
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
