"""Elements of a tensor: what is read, filled, put back and checked is exactly what the mask says, in every layout."""

import pytest
import torch

from safeflux.model.index_sets import Lines, Points, common, copy_, off_places

DTYPES = [torch.uint8, torch.int16, torch.int32, torch.int64]


def bits_like(shape, dtype, layout):
    """Random bits, none of them zero, stored by rows or by columns."""
    draw = torch.Generator().manual_seed(0)
    bits = torch.randint(1, 127, shape, generator=draw).to(dtype)
    return bits.t().contiguous().t() if layout == "by columns" else bits


def cases():
    for share in (0.01, 0.5, 1.0):
        for axis in (0, 1):
            yield pytest.param(axis, share, id=f"{'rows' if axis == 0 else 'columns'}, {share:.0%}")
        yield pytest.param(None, share, id=f"points, {share:.0%}")


@pytest.mark.parametrize("layout", ["by rows", "by columns"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("axis", "share"), list(cases()))
def test_what_is_done_to_elements_is_done_to_them_alone(axis, share, dtype, layout):
    shape = (60, 40)
    bits, draw = bits_like(shape, dtype, layout), torch.Generator().manual_seed(1)
    size = shape[0] * shape[1] if axis is None else shape[axis]
    off = torch.rand(size, generator=draw) < share
    off[3] = True
    numbers = off.nonzero().view(-1)
    elements = Points(numbers) if axis is None else Lines(axis, numbers)
    where = off.view(shape) if axis is None else off[:, None].expand(shape) if axis == 0 else off.expand(shape)

    before = bits.clone()
    saved = elements.read(bits)
    assert saved.numel() == int(where.sum())
    assert not elements.are_zero(bits)
    assert elements.nonzero(bits).shape == numbers.shape
    assert elements.nonzero(bits).all()
    pointer = bits.data_ptr()
    elements.fill_(bits)
    assert bits.data_ptr() == pointer
    assert torch.equal(bits, torch.where(where, 0, before))
    assert elements.are_zero(bits)
    assert not elements.nonzero(bits).any()
    for place in where.nonzero()[:: max(1, int(where.sum()) // 7)].tolist():  # one bit, anywhere
        bits[tuple(place)] = 1
        assert not elements.are_zero(bits)
        assert int(elements.nonzero(bits).sum()) == 1
        bits[tuple(place)] = 0
    elements.put_(bits, saved)
    assert torch.equal(bits, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_is_a_row_of_single_elements(dtype):
    bias = torch.arange(1, 21).to(dtype)
    elements = Lines(0, torch.tensor([2, 5]))
    assert elements.read(bias).tolist() == [3, 6]
    elements.fill_(bias)
    assert elements.are_zero(bias)
    assert bias.count_nonzero() == 18
    bias[5] = 1
    assert elements.nonzero(bias).tolist() == [False, True]


@pytest.mark.parametrize("layout", ["by rows", "by columns"])
@pytest.mark.parametrize("axis", [0, 1, None], ids=["rows", "columns", "points"])
def test_what_two_masks_share_is_copied_from_what_one_read_to_what_the_other_read(axis, layout):
    shape = (1500, 1400)  # copied in more than one piece
    bits = bits_like(shape, torch.int16, layout)
    size = bits.numel() if axis is None else shape[axis]
    one, other = (
        Points(numbers) if axis is None else Lines(axis, numbers)
        for numbers in (torch.arange(0, size - size // 5), torch.arange(size // 20, size))
    )
    mine, theirs = common(one, other, width=shape[1])
    found = torch.zeros_like(one.read(bits))
    copy_(found, mine, other.read(bits), theirs)
    without_other = bits.clone()
    other.fill_(without_other)
    assert torch.equal(found, one.read(bits - without_other))
    assert 0 < len(mine) == len(theirs) < len(one)


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (65,), (3, 5), (16, 16)])
def test_places_that_are_off_are_counted_row_by_row(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.4
    assert torch.equal(off_places(mask), (~mask).flatten().nonzero().view(-1))
    assert off_places(torch.ones(shape, dtype=torch.bool)).numel() == 0
