"""Estimates for every bit at the current mask, from the end-to-end loss.

For a bit m_i, with L_e the erasure and L_p the preservation loss over the whole sampler:
    erase_i    = dL_e / dm_i                 switching the bit off changes L_e by about -erase_i
    undo_i     = dL_d / dm_i                 of the other categories d whose masks are on: below 0 where the bit, once
                                             off, would bring d back
    preserve_i = dL_p / dm_i                 zero at the base model, where L_p has its minimum
    price_i    = sum_j (dF_j / dm_i)^2 / n   the second order of L_p (Gauss-Newton), by Hutchinson's estimate
All are float32 on the CPU, one flat vector over all sites (`Bits`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safeflux.trainer.processes import Processes

PARTS = ("erase", "undo", "preserve", "price")
LEAST_URGENCY = 0.25
"""The best erased category still counts this much, or it would come back unnoticed."""


@dataclass(frozen=True)
class Estimates:
    """One number a bit for each of the four; float32 (bits,)."""

    erase: torch.Tensor
    undo: torch.Tensor
    preserve: torch.Tensor
    price: torch.Tensor

    @classmethod
    def zeros(cls, count: int) -> "Estimates":
        """Nothing known yet."""
        return cls(*(torch.zeros(count) for _ in PARTS))

    def worth(self, beta: float, price_floor: float) -> torch.Tensor:
        """The worth of switching each bit off: (erase + min(undo, 0) + beta * preserve) / (price + floor).

        A mask must not undo the work of others, nor is it rewarded for doing their work. The numerator is the
        first-order gain of the whole loss, the denominator its second-order price. The price also bounds the joint
        effect of many bits, which their slopes alone do not: bits chosen by slope alone overshoot.

        Args:
            beta: Weight of preservation beside erasure.
            price_floor: The floor, in units of the mean price. It keeps bits that move nothing from winning by a tiny
                price; the higher it is, the more the gain alone decides, for fewer bits that each cost more.
        """
        gain = self.erase + self.undo.clamp_max(0) + beta * self.preserve
        return gain / (self.price + price_floor * self.price.mean()).clamp_min(1e-30)


def urgency(left: torch.Tensor, balance: float) -> torch.Tensor:
    """How much the erasure of each category counts beside that of the others, by how much is left of it.

    Args:
        left: The erasure loss of each category, float32 (categories,).
        balance: The exponent; 0 lets all count alike.

    Examples:
        >>> urgency(torch.tensor([0.1, 0.1, 0.4]), 1.0)
        tensor([0.5000, 0.5000, 2.0000])
    """
    return (left / left.mean()).clamp_min(LEAST_URGENCY) ** balance


def share_out(batches: int, left: torch.Tensor) -> list[int]:
    """How many of a round's erase batches each category gets: one each, and of the others as much as is left of it.

    Args:
        batches: How many there are, no fewer than categories.
        left: The erasure loss of each category, float32 (categories,).

    Examples:
        >>> share_out(9, torch.tensor([0.1, 0.1, 0.4]))
        [2, 2, 5]
    """
    exact = (left / left.sum()).double() * (batches - len(left))
    counts = exact.floor().long()
    counts[(exact - counts).topk(batches - len(left) - int(counts.sum())).indices] += 1
    return (counts + 1).tolist()


class Sums:
    """One part of a round's estimates while its batches come in: a row a category, and how many batches it is of."""

    def __init__(self, categories: int, bits: int) -> None:
        self._totals, self._counts = torch.zeros(categories, bits), torch.zeros(categories)

    def add(self, category: int, values: torch.Tensor) -> None:
        """One batch's values for one category, (bits,)."""
        self._totals[category] += values
        self._counts[category] += 1

    def means(self, processes: Processes) -> dict[int, torch.Tensor]:
        """Category -> mean over the batches of all processes, (bits,); without those that no batch served."""
        totals, counts = processes.sum(self._totals), processes.sum(self._counts)
        return {k: totals[k] / count for k, count in enumerate(counts.tolist()) if count}


class Smoothed:
    """Estimates averaged over rounds, the older ones fading; without the bias of a start from zero."""

    def __init__(self, count: int, smoothing: Mapping[str, float]) -> None:
        """`smoothing`: for each part, how much of the old values a round carries over."""
        self._smoothing = dict(smoothing)
        self._sums, self._weights = vars(Estimates.zeros(count)), dict.fromkeys(smoothing, 0.0)

    def update(self, **fresh: torch.Tensor) -> None:
        """Blend a round's values in, by the names of their parts; a part that is not named stays as it was."""
        for part, values in fresh.items():
            share = self._smoothing[part]
            self._sums[part].mul_(share).add_(values, alpha=1 - share)
            self._weights[part] = share * self._weights[part] + (1 - share)

    @property
    def value(self) -> Estimates:
        """The averages."""
        return Estimates(**{part: total / max(self._weights[part], 1e-30) for part, total in self._sums.items()})

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"sums": self._sums, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self._sums, self._weights = state["sums"], state["weights"]
