"""The smallest mask that still erases, found by validation only at the end of a run.

Bits that are off are ordered by their worth to the whole loss, the least first. A share of that order is
switched on again; the largest share under which validation finds the category no more often than the target is found
by bisection, which asks for one validation a step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

STEPS = 5
"""Halvings of the interval, each with one validation."""


@dataclass(frozen=True)
class Point:
    """One mask on the way, and its validation."""

    masked: int
    """Bits off."""
    found: float
    """Share of validation pictures in which the category is found."""
    right: float
    """Share of validation pictures of other things in which these are found."""


def minimise(
    keep: torch.Tensor,
    worth: torch.Tensor,
    look: Callable[[torch.Tensor], tuple[float, float]],
    target: float,
    *,
    steps: int = STEPS,
) -> tuple[torch.Tensor, list[Point]]:
    """Switch back on as many bits as validation allows.

    Args:
        keep: The mask, bool (bits,).
        worth: The worth of switching each bit off, float32 (bits,).
        look: Validates a mask: how often the category is found, and how often other things are right.
        target: The largest share that still counts as erased.
        steps: Halvings of the interval; the result is within 1 / 2 ** steps of the best share.

    Returns:
        The smallest mask that was seen to erase (the given one if none smaller does), and every mask that was tried,
        the given one first.
    """
    off = (~keep).nonzero().flatten()
    order = off[worth[off].argsort()]

    def without(count: int) -> torch.Tensor:
        smaller = keep.clone()
        smaller[order[:count]] = True
        return smaller

    curve = [Point(len(off), *look(keep))]
    low, high = 0, len(order)
    for _ in range(steps):
        middle = (low + high) // 2
        if middle in (low, high):
            break
        curve.append(Point(len(order) - middle, *look(without(middle))))
        if curve[-1].found <= target:
            low = middle
        else:
            high = middle
    return without(low), curve
