"""Packed weights, by what the format says."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.backends.neon import pack


def test_dense_rows_of_a_group_follow_each_other() -> None:
    weight = np.arange(8 * 4, dtype=np.int8).reshape(8, 4, 1, 1)
    assert pack.pack_dense(weight, pack.DENSE["dense_dotprod"]).tolist() == weight.reshape(-1).tolist()


def test_a_last_group_of_four_channels_stores_four_rows() -> None:
    for out, rows in ((1, 4), (4, 4), (5, 8), (8, 8), (9, 12), (13, 16)):
        weight = np.ones((out, 4, 1, 1), np.int8)
        assert pack.pack_dense(weight, pack.DENSE["dense_dotprod"]).size == rows * 4


def test_i8mm_pairs_channels_that_are_four_apart() -> None:
    weight = np.repeat(np.arange(8, dtype=np.int8), 8).reshape(8, 8, 1, 1)
    packed = pack.pack_dense(weight, pack.DENSE["dense_i8mm"])
    assert packed.reshape(8, 8)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_taps_come_before_blocks() -> None:
    weight = np.zeros((4, 8, 1, 2), np.int8)
    weight[0, 4, 0, 1] = 5  # second tap, second block, first channel
    packed = pack.pack_dense(weight, pack.DENSE["dense_neon"]).reshape(2, 2, 4, 4)
    assert np.argwhere(packed).tolist() == [[1, 1, 0, 0]]


def test_a_sparse_stream_holds_offset_and_weights() -> None:
    weight = np.zeros((8, 8, 1, 1), np.int8)
    weight[4:, 4:] = np.arange(1, 17).reshape(4, 4, 1, 1)
    sparse = pack.pack_sparse(weight, pack.SPARSE["4x4"], np.array([12], np.int32), 100)
    assert sparse.group_starts.tolist() == [0]
    assert sparse.block_counts.tolist() == [0, 1]
    assert sparse.stream[:4].view("<i4").tolist() == [112]
    assert sparse.stream[4:].tolist() == list(range(1, 17))


def test_blocks_of_one_row_come_in_pairs() -> None:
    weight = np.zeros((9, 12, 1, 1), np.int8)
    weight[0, :, 0, 0] = 1 + np.arange(12) // 4
    weight[8, 4:8] = 9
    sparse = pack.pack_sparse(weight, pack.SPARSE["1x4"], np.array([0], np.int32), 100)
    assert sparse.block_counts.tolist() == [3, *[0] * 7, 1, *[0] * 7]
    assert sparse.group_starts.tolist() == [0, 24]
    words = sparse.stream.view("<i4").tolist()
    assert words == [0, 100, 0x01010101, 0x02020202, 200, 0x03030303, 100, 0x09090909]


def test_a_bias_takes_off_what_the_padding_adds() -> None:
    weight = np.array([[1, 2], [-3, 4]], np.int8)[:, :, None, None]
    folded = pack.fold_bias(np.array([10, 20], np.int32), weight, -5)
    assert folded.tolist() == [10 + 5 * 3, 20 + 5 * 1, *[0] * 6]
    magic = pack.fold_bias(np.array([10, 20], np.int32), weight, -5, magic=True)
    assert np.all(magic.view(np.float32) == np.float32(12582912) + folded)
    with pytest.raises(OverflowError):
        pack.fold_bias(np.array([2**31 - 1, 0], np.int32), weight, -5)


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 3)])
def test_offsets_find_the_pixels_of_a_window(stride: tuple[int, int]) -> None:
    height, width, block, dilation = 9, 11, 4, (2, 1)
    plane = np.arange(height * width).reshape(height, width)
    rows, columns = pack.phase_plane((height, width), stride)
    whole = np.full((rows * stride[0], columns * stride[1]), -1)
    whole[:height, :width] = plane
    phases = whole.reshape(rows, stride[0], columns, stride[1]).transpose(1, 3, 0, 2).reshape(-1)
    offsets = pack.tap_offsets((3, 2), dilation, stride, (height, width), block)
    y, x = 1, 1  # an output pixel
    found = phases[offsets // block + y * columns + x]
    wanted = [plane[y * stride[0] + ky * 2, x * stride[1] + kx] for ky in range(3) for kx in range(2)]
    assert found.tolist() == wanted


def test_an_offset_that_does_not_fit_is_refused() -> None:
    with pytest.raises(OverflowError, match="offset"):
        pack.pack_sparse(np.ones((4, 8, 1, 1), np.int8), pack.SPARSE["4x4"], np.array([2**31 - 5], np.int32), 100)
