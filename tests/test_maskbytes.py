"""Bits to arrays and back: one array for one mask, and nothing else is read."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safeflux.errors import MaskFileError
from safeflux.maskbytes import canonical_json, pack, unique_keys, unpack


@given(st.integers(1, 300), st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.03, 0.05, 0.5, 1.0]))
def test_pack_and_unpack_are_inverse(num_bits, seed, share):
    mask = torch.rand(num_bits, generator=torch.Generator().manual_seed(seed)) >= share
    array = pack("x", mask)
    assert array.dtype == (np.uint32 if int((~mask).sum()) * 32 < num_bits else np.uint8)
    assert torch.equal(unpack("x", array, (num_bits,)), mask)


def test_the_bytes_by_hand():
    dense = torch.tensor([True, False, False, True, False, False, False, False, True])
    assert pack("x", dense).tolist() == [0b00001001, 0b1]
    sparse = torch.ones(4, 25, dtype=torch.bool)
    sparse[2, 3] = sparse[0, 7] = False
    assert pack("x", sparse).tolist() == [7, 53]


@pytest.mark.parametrize(("num_off", "dtype"), [(0, np.uint32), (3, np.uint32), (4, np.uint8), (128, np.uint8)])
def test_the_form_changes_at_one_bit_in_32(num_off, dtype):
    mask = torch.arange(128) >= num_off
    assert pack("x", mask).dtype == dtype


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([5, 3], "<u4"), "rising indices below 128"),
        (np.array([3, 3], "<u4"), "rising indices below 128"),
        (np.array([3, 128], "<u4"), "rising indices below 128"),
        (np.arange(4, dtype="<u4"), "with 4 of 128 bits off, expected the other encoding than uint32"),
        (np.full(16, 255, "u1"), "with 0 of 128 bits off, expected the other encoding than uint8"),
    ],
)
def test_arrays_that_pack_would_not_make_are_refused(array, message):
    with pytest.raises(MaskFileError, match=f"tensor 'x'.*{message}"):
        unpack("x", array, (128,))


def test_padding_bits_must_be_zero():
    with pytest.raises(MaskFileError, match="zero padding bits after bit 8"):
        unpack("x", np.array([0, 0b11], "u1"), (9,))


def test_json_has_one_form():
    assert canonical_json({"b": 1.5, "a": ["ü"]}) == '{"a":["\\u00fc"],"b":1.5}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
    with pytest.raises(ValueError, match="key 'a' twice"):
        unique_keys([("a", 1), ("a", 2)])
