"""Which bits are switched, on problems whose answer is known."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safeflux.trainer.methods.estimates import LEAST_URGENCY, PARTS, Estimates, Smoothed, urgency
from safeflux.trainer.methods.selection import exchange_
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.losses import random_projection
from safeflux.trainer.objective.vectors import PIECE, Vectors

from safeflux.families.sites import find_sites


def estimates(erase: list[float], price: list[float], preserve: list[float] | None = None) -> Estimates:
    nothing = [0.0] * len(erase)
    return Estimates(torch.tensor(erase), torch.tensor(nothing), torch.tensor(preserve or nothing), torch.tensor(price))


def test_bits_that_erase_most_for_their_price_go_first():
    keep = torch.ones(4, dtype=torch.bool)
    worth = estimates([4.0, 4.0, 1.0, -5.0], [9.0, 1.0, 0.1, 0.1]).worth(1.0, 1.3)
    assert exchange_(keep, worth, off=2, on=2).tolist() == [True, False, False, True]
    assert keep.tolist() == [True, False, False, True]


def test_a_bit_that_would_bring_the_concept_forward_is_never_switched_off():
    keep = torch.ones(3, dtype=torch.bool)
    assert exchange_(keep, estimates([-1.0, 0.0, -2.0], [1.0, 1.0, 1.0]).worth(1.0, 0.5), off=3, on=0).all()


def test_exchange_switches_only_what_lowers_the_loss():
    keep = torch.tensor([False, False, True, True])
    # Bit 0 is wanted back by preservation, bit 1 still erases; bit 2 would still help to erase, bit 3 would not.
    known = estimates(erase=[0.1, 5.0, 2.0, 0.0], price=[0.1] * 4, preserve=[-3.0, 0.0, 0.0, 0.0])
    assert exchange_(keep, known.worth(1.0, 0.05), off=2, on=2).tolist() == [True, False, False, True]


@given(st.integers(0, 2**31), st.integers(0, 20), st.integers(0, 20))
def test_exchange_never_switches_more_than_it_may(seed, count_on, count_off):
    draw = torch.Generator().manual_seed(seed)
    keep = torch.rand(50, generator=draw) > 0.5
    known = Estimates(*(torch.randn(50, generator=draw) for _ in range(3)), torch.rand(50, generator=draw))
    out = exchange_(keep.clone(), known.worth(0.5, 0.25), off=count_off, on=count_on)
    assert int((out & ~keep).sum()) <= count_on
    assert int((keep & ~out).sum()) <= count_off


def test_what_is_left_most_counts_most_and_keeps_bits_that_preservation_wants_back():
    left = torch.tensor([0.001, 0.1, 0.5])
    count = urgency(left, 1.0)
    assert count[0] == LEAST_URGENCY < count[1] < 1 < count[2]
    assert urgency(left, 0.0).tolist() == [1, 1, 1]
    known = estimates([1.0], [1.0], preserve=[-0.8])
    assert [known.worth(2.0 / weight, 0.5).item() > 0 for weight in count.tolist()] == [False, False, True]


def test_smoothed_estimates_have_no_bias_towards_zero_and_each_part_its_own_memory():
    running = Smoothed(1, {"erase": 0.9, "undo": 0.0, "preserve": 0.5, "price": 0.0})
    for value in (2.0, 2.0, 4.0):
        for part in ("erase", "preserve", "price"):
            running.update(part, [torch.tensor([value])])
    (known,) = running.averages()
    assert known.erase.item() == pytest.approx((0.81 * 2 + 0.9 * 2 + 4) / (0.81 + 0.9 + 1), rel=1e-5)
    assert known.preserve.item() == pytest.approx((0.25 * 2 + 0.5 * 2 + 4) / 1.75, rel=1e-5)
    assert (known.price.item(), known.undo.item()) == (4, 0)


def test_a_mask_is_not_to_undo_what_another_erases_and_not_rewarded_for_erasing_it():
    known = estimates(erase=[2.0, 2.0, 0.0], price=[1.0, 1.0, 1.0])
    known = replace(known, undo=torch.tensor([-3.0, 0.0, 5.0]))
    assert [value > 0 for value in known.worth(1.0, 0.5).tolist()] == [False, True, False]


def test_a_part_without_news_stays_as_it_was():
    running = Smoothed(1, dict.fromkeys(("erase", "undo", "preserve", "price"), 0.5))
    for part, value in (("erase", 1.0), ("price", 2.0), ("preserve", 3.0), ("erase", 3.0)):
        running.update(part, [torch.tensor([value])])
    (known,) = running.averages()
    assert (known.price.item(), known.preserve.item()) == (2, 3)
    assert known.erase.item() == pytest.approx((0.5 * 1 + 3) / 1.5)


def test_bits_of_several_pieces_are_chosen_as_if_they_were_one(tmp_path):
    """The worth and the switches of a million bits, in files, against one expression over all of them."""
    count, draw = PIECE + 5, torch.Generator().manual_seed(0)
    whole = Estimates(*(torch.randn(count, generator=draw) for _ in range(3)), torch.rand(count, generator=draw))
    running = Smoothed(count, dict.fromkeys(PARTS, 0.0), Vectors(tmp_path / "run", small=0))
    for part, values in vars(whole).items():
        running.update(part, values.split(PIECE))
    worth = running.worth(2.0, 0.5)
    assert torch.equal(worth, whole.worth(2.0, 0.5 * whole.price.mean()))
    keep = torch.rand(count, generator=draw) < 0.99
    gone = torch.where(keep, worth, -torch.inf).topk(50).indices
    back = torch.where(~keep, -worth, -torch.inf).topk(20).indices
    expected = keep.clone()
    expected[gone], expected[back] = False, True
    assert torch.equal(exchange_(keep, worth, off=50, on=20), expected)
    assert not list((tmp_path / "run").iterdir())  # the files have no names


def test_bits_go_to_one_line_and_back(base_transformer, make_masks):
    bits = Bits(find_sites(base_transformer))
    masks = make_masks(0)
    assert bits.masks_of(bits.keep_of(masks)) == masks
    assert bits.count == sum(count.total for count in masks.counts.values())


def test_the_price_is_the_second_order_of_preservation():
    """On a linear model F = A m the curvature is known: price_i = sum_j A_ji^2 / n = half the second derivative."""
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(40, 6, generator=draw, dtype=torch.float64)
    m = torch.ones(6, dtype=torch.float64, requires_grad=True)
    found = torch.zeros(6, dtype=torch.float64)
    for _ in range(4000):
        (gradient,) = torch.autograd.grad(random_projection((a @ m).view(2, 5, 4), draw), m)
        found += gradient.square() / 4000
    second = torch.autograd.functional.hessian(lambda x: (a @ x - a.sum(dim=1)).square().mean(), m.detach())
    assert torch.allclose(found, second.diagonal().double() / 2, rtol=0.15)
