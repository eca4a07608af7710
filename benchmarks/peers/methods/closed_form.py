"""Linear maps by least squares: W* = argmin sum_k w_k |W* x_k - W_k y_k|^2, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Term:
    """Inputs x that a map should take to where another map takes inputs y.

    Attributes:
        weight: That other map W_k, (O, I).
        cross: The sum of y x^T, (I, I).
        auto: The sum of x x^T, (I, I).
        share: Weight w_k of the term.
    """

    weight: torch.Tensor
    cross: torch.Tensor
    auto: torch.Tensor
    share: float = 1.0

    @classmethod
    def kept(cls, weight: torch.Tensor, auto: torch.Tensor, share: float) -> Term:
        """Inputs that should be mapped as before."""
        return cls(weight, auto, auto, share)


def solve(terms: Sequence[Term]) -> torch.Tensor:
    """The map, (O, I), in the dtype of the first term's; computed in float64, where the inverse needs it."""
    left = sum((t.share * t.weight.double() @ t.cross.double() for t in terms), torch.zeros(()))
    right = sum((t.share * t.auto.double() for t in terms), torch.zeros(()))
    return torch.linalg.solve(right, left, left=False).to(terms[0].weight.dtype)
