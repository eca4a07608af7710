"""Old masks for new ones in a tensor: any mix of rows, columns and single elements, against a dense reckoning."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from safeflux.model.index_sets import Lines, Points
from safeflux.model.writes import Place, Swap, Write, as_bits

ROWS, COLUMNS = 4, 5
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
LAYOUTS = ["by rows", "by columns", "every other column"]


def some(kind, size):
    """Elements of a kind, at least one."""
    numbers = st.sets(st.integers(0, size - 1), min_size=1).map(lambda found: torch.tensor(sorted(found)))
    return numbers.map(Points if kind is None else lambda found: Lines(kind, found))


MASKS = st.lists(some(None, ROWS * COLUMNS) | some(0, ROWS) | some(1, COLUMNS), max_size=3)
SPOTS = [Points(torch.tensor([n])) for n in (0, 6)]
CROSSING = [Lines(0, torch.tensor([1])), Lines(1, torch.tensor([1, 3]))]


def tensor_of(dtype, layout, draw):
    """Any bits, those of NaN and -0 included, of which none are 0."""
    integer = as_bits(torch.empty(0, dtype=dtype)).dtype
    bits = torch.randint(1, 127, (ROWS, 2 * COLUMNS), generator=draw).to(integer)
    bits[0, 0] = torch.iinfo(integer).max
    tensor = bits.view(dtype)
    if layout == "by columns":
        return tensor[:, :COLUMNS].t().contiguous().t()
    return tensor[:, ::2] if layout == "every other column" else tensor[:, :COLUMNS].contiguous()


def off(masks):
    """Where they are off, spelled out."""
    where = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    for elements in masks:
        match elements:
            case Points(places):
                where |= torch.isin(torch.arange(ROWS * COLUMNS), places).view(ROWS, COLUMNS)
            case Lines(axis, numbers):
                where |= torch.isin(torch.arange((ROWS, COLUMNS)[axis]), numbers).unsqueeze(1 - axis)
    return where


def masked(original, where):
    return torch.where(where, 0, original)


def places_in(tensors, masks):
    """Each mask in one of the tensors, in turn."""
    return [Place(f"{n}", f"{n}", tensors[n % len(tensors)], elements) for n, elements in enumerate(masks)]


def write_all(places):
    writes = [Write.of(place, as_bits(place.tensor)) for place in places]
    for write in writes:
        write.fill_()
    return writes


@given(MASKS, MASKS, st.sampled_from(DTYPES), st.sampled_from(LAYOUTS))
@example([*SPOTS, *CROSSING], [CROSSING[1], SPOTS[1]], torch.bfloat16, "by rows")
@example(CROSSING, SPOTS, torch.float32, "by columns")
@example(SPOTS, CROSSING, torch.float32, "by columns")
def test_a_swap_gives_what_the_new_masks_give_and_takes_them_out_again(old, new, dtype, layout):
    tensor = tensor_of(dtype, layout, torch.Generator().manual_seed(0))
    names = [tensor, tensor[:]]  # a second one in the same memory
    bits = as_bits(tensor)
    original = bits.clone()
    swap = Swap.of(write_all(places_in(names, old)), places_in(names, new))
    assert torch.equal(bits, masked(original, off(old)))
    for _ in range(2):
        swap.do_()
        assert torch.equal(bits, masked(original, off(new)))
        swap.undo_()
        assert torch.equal(bits, masked(original, off(old)))
    swap.do_()
    for write in swap.writes:
        write.restore_()
    assert torch.equal(bits, original)


@given(MASKS, MASKS, st.integers(0, 5))
def test_a_swap_that_stops_anywhere_has_never_had_on_what_both_mask(old, new, steps):
    tensor = tensor_of(torch.float32, "by rows", torch.Generator().manual_seed(1))
    bits = as_bits(tensor)
    original = bits.clone()
    swap = Swap.of(write_all(places_in([tensor], old)), places_in([tensor], new))
    both = off(old) & off(new)
    for step in [*(w.fill_ for w in swap.off), *(w.restore_ for w in swap.on)][:steps]:
        step()
        assert not bits[both].any()
        assert torch.equal(bits[~off([*old, *new])], original[~off([*old, *new])])
    swap.undo_()
    assert torch.equal(bits, masked(original, off(old)))


@pytest.mark.parametrize("kind", [None, 0, 1], ids=["points", "rows", "columns"])
def test_of_masks_of_one_kind_a_swap_writes_what_differs_alone(kind):
    tensor = tensor_of(torch.float32, "by rows", torch.Generator().manual_seed(2))

    def elements(*numbers):
        return Points(torch.tensor(numbers)) if kind is None else Lines(kind, torch.tensor(numbers))

    old = write_all(places_in([tensor], [elements(0, 1), elements(3)]))
    swap = Swap.of(old, places_in([tensor], [elements(1, 2, 3)]))
    assert [off([write.elements]).tolist() for write in swap.off] == [off([elements(2)]).tolist()]
    assert [off([write.elements]).tolist() for write in swap.on] == [off([elements(0)]).tolist()]
    same = Swap.of(old, places_in([tensor], [elements(0, 1, 3)]))
    assert not same.off
    assert not same.on


@given(MASKS, MASKS, MASKS)
def test_what_was_added_on_top_of_zeros_is_carried_from_mask_to_mask(first, second, third):
    tensor = tensor_of(torch.float32, "by rows", torch.Generator().manual_seed(3))
    tensor.copy_(torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS) - 3.0)
    added = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS) % 3 * 0.5
    fused = tensor + added
    places = places_in([tensor], first)
    writes = write_all(places)
    tensor += added
    writes = [write.again(place) for write, place in zip(writes, places, strict=True)]
    for write in writes:
        write.fill_()
    for masks in (second, third):
        swap = Swap.of(writes, places_in([tensor], masks))
        swap.do_()
        assert torch.equal(tensor, fused * ~off(masks))
        writes = swap.writes
    for write in writes:
        write.restore_()
    assert torch.equal(tensor, fused)


def test_undo_keeps_the_sign_of_a_zero_onto_which_nothing_was_added():
    tensor = torch.tensor([[-0.0, 1.0]])
    original = as_bits(tensor).clone()
    places = places_in([tensor], [Lines(0, torch.tensor([0]))])
    (write,) = write_all(places)
    tensor[0, 1] = 0.5
    again = write.again(places[0])
    again.restore_()
    assert as_bits(tensor)[0, 0] == original[0, 0]
    assert tensor[0, 1] == 1.5
