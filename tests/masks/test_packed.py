"""Masks to packed bits and back: one array for one mask, and nothing else is read; AND without unpacking."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeflux.errors import MaskFileError
from safeflux.masks.packed import MAX_BITS, PackedMask, all_of

SHARES = st.sampled_from([0.0, 0.01, 0.03, 0.05, 0.5, 1.0])


def drawn(size, seed, share):
    return np.random.default_rng(seed).random(size) >= share


@given(st.integers(1, 300), st.integers(0, 2**32), SHARES)
def test_packing_and_unpacking_are_inverse(size, seed, share):
    keep = drawn(size, seed, share)
    bits = PackedMask.of(keep)
    assert bits.array.dtype == (np.uint32 if np.count_nonzero(~keep) * 32 < size else np.uint8)
    assert PackedMask.read("x", bits.array, (size,)) == bits
    assert np.array_equal(bits.keep(), keep)
    assert np.array_equal(bits.off(), np.flatnonzero(~keep))
    assert bits.num_off == np.count_nonzero(~keep)


@given(st.integers(1, 300), st.lists(st.tuples(st.integers(0, 2**32), SHARES), min_size=1, max_size=5))
def test_the_and_of_packed_masks_is_the_packed_and(size, draws):
    keeps = [drawn(size, *one) for one in draws]
    assert all_of([PackedMask.of(keep) for keep in keeps]) == PackedMask.of(np.logical_and.reduce(keeps))


def test_what_is_taken_out_is_a_copy():
    bits = PackedMask.of(np.array([True, False, True]))
    bits.keep()[:] = False
    assert bits.keep().tolist() == [True, False, True]
    assert bits != PackedMask.of(np.array([True, False]))
    assert bits != "101"


def test_the_bytes_by_hand():
    dense = np.array([True, False, False, True, False, False, False, False, True])
    assert PackedMask.of(dense).array.tolist() == [0b00001001, 0b1]
    sparse = np.ones((4, 25), dtype=bool)
    sparse[2, 3] = sparse[0, 7] = False
    assert PackedMask.of(sparse).array.tolist() == [7, 53]


def test_more_bits_than_an_index_can_count_are_refused():
    endless = np.broadcast_to(np.array([True]), MAX_BITS + 1)
    with pytest.raises(MaskFileError, match=f"at most {MAX_BITS} bits"):
        PackedMask.of(endless)


@pytest.mark.parametrize(("num_off", "dtype"), [(0, np.uint32), (3, np.uint32), (4, np.uint8), (128, np.uint8)])
def test_the_form_changes_at_one_bit_in_32(num_off, dtype):
    assert PackedMask.of(np.arange(128) >= num_off).array.dtype == dtype


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([5, 3], "<u4"), "strictly increasing indices below 128"),
        (np.array([3, 3], "<u4"), "strictly increasing indices below 128"),
        (np.array([3, 128], "<u4"), "strictly increasing indices below 128"),
        (np.arange(4, dtype="<u4"), "4 of 128 bits are off, which is not encoded as uint32"),
        (np.full(16, 255, "u1"), "0 of 128 bits are off, which is not encoded as uint8"),
    ],
)
def test_arrays_that_packing_would_not_make_are_refused(array, message):
    with pytest.raises(MaskFileError, match=f"tensor 'x'.*{message}"):
        PackedMask.read("x", array, (128,))


def test_padding_bits_must_be_zero():
    with pytest.raises(MaskFileError, match="zero padding bits after bit 8"):
        PackedMask.read("x", np.array([0, 0b11], "u1"), (9,))
