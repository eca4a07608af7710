"""Estimates for every bit at the current mask, from the end-to-end loss.

For a bit m_i, with L_e the erasure and L_p the preservation loss over the whole sampler:
    erase_i    = dL_e / dm_i                 switching the bit off changes L_e by about -erase_i
    undo_i     = dL_d / dm_i                 of the other categories d whose masks are on: below 0 where the bit, once
                                             off, would bring d back
    preserve_i = dL_p / dm_i                 zero at the base model, where L_p has its minimum
    price_i    = sum_j (dF_j / dm_i)^2 / n   the second order of L_p (Gauss-Newton), by Hutchinson's estimate
All are float32 on the CPU, one flat vector over all sites (`Bits`), read and written piece by piece (`vectors`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safeflux.trainer.objective.vectors import IN_MEMORY, PIECE, Vectors
from safeflux.trainer.processes import Processes

PARTS = ("erase", "undo", "preserve", "price")
LEAST_URGENCY = 0.25
"""The best erased category still counts this much, or it would come back unnoticed."""


@dataclass(frozen=True)
class Estimates:
    """One number a bit for each of the four, of all bits or a piece of them; float32 (bits,)."""

    erase: torch.Tensor
    undo: torch.Tensor
    preserve: torch.Tensor
    price: torch.Tensor

    def worth(self, beta: float, floor: float | torch.Tensor) -> torch.Tensor:
        """The worth of switching each bit off: (erase + min(undo, 0) + beta * preserve) / (price + floor).

        A mask must not undo the work of others, nor is it rewarded for doing their work. The numerator is the
        first-order gain of the whole loss, the denominator its second-order price. The price also bounds the joint
        effect of many bits, which their slopes alone do not: bits chosen by slope alone overshoot.

        Args:
            beta: Weight of preservation beside erasure.
            floor: Keeps bits that move nothing from winning by a tiny price; the higher it is, the more the gain alone
                decides, for fewer bits that each cost more.
        """
        gain = self.erase + self.undo.clamp_max(0) + beta * self.preserve
        return gain / (self.price + floor).clamp_min(1e-30)


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

    def __init__(self, categories: int, bits: int, vectors: Vectors = IN_MEMORY) -> None:
        self._totals, self._counts = vectors.zeros(categories, bits), torch.zeros(categories)

    def add(self, category: int, start: int, piece: torch.Tensor) -> None:
        """Some of one batch's values for one category, those of the bits from `start` on."""
        self._totals[category, start : start + len(piece)] += piece

    def count(self, category: int) -> None:
        """One batch more has been added whole."""
        self._counts[category] += 1

    def means(self, processes: Processes) -> Iterator[tuple[int, Iterator[torch.Tensor]]]:
        """Each category that a batch served, and the mean over the batches of all processes, piece by piece.

        The pieces of one category have to be taken before those of the next, in all processes.
        """
        for category, count in enumerate(processes.sum(self._counts).tolist()):
            if count:
                yield category, self._mean(category, count, processes)

    def _mean(self, category: int, count: float, processes: Processes) -> Iterator[torch.Tensor]:
        for total in self._totals[category].split(PIECE):
            yield processes.sum(total) / count


class Smoothed:
    """Estimates averaged over rounds, the older ones fading; without the bias of a start from zero."""

    def __init__(self, count: int, smoothing: Mapping[str, float], vectors: Vectors = IN_MEMORY) -> None:
        """Nothing known yet.

        Args:
            count: How many bits there are.
            smoothing: For each part, how much of the old values a round carries over.
            vectors: Makes a part when the first values of it arrive.
        """
        self._count, self._smoothing, self._vectors = count, dict(smoothing), vectors
        self._sums: dict[str, torch.Tensor] = {}
        self._weights = dict.fromkeys(smoothing, 0.0)

    def update(self, part: str, values: Iterable[torch.Tensor]) -> None:
        """Blend a round's values of a part in, piece by piece; the other parts stay as they were."""
        share = self._smoothing[part]
        for total, piece in zip(self._sum_of(part).split(PIECE), values, strict=True):
            total.mul_(share).add_(piece, alpha=1 - share)
        self._weights[part] = share * self._weights[part] + (1 - share)

    def averages(self) -> Iterator[Estimates]:
        """The averages, piece by piece."""
        for start in range(0, self._count, PIECE):
            nothing = torch.zeros(min(PIECE, self._count - start))
            yield Estimates(
                **{
                    part: self._sums[part][start : start + PIECE] / self._weight_of(part)
                    if part in self._sums
                    else nothing
                    for part in PARTS
                }
            )

    def worth(self, beta: float, price_floor: float) -> torch.Tensor:
        """The worth of switching each bit off at these averages (`Estimates.worth`); float32 (bits,).

        Args:
            beta: Weight of preservation beside erasure.
            price_floor: The floor, in units of the mean price.
        """
        worth = self._vectors.zeros(self._count)
        if "price" in self._sums:  # the mean needs all prices at once, and the place of the result is still free
            torch.div(self._sums["price"], self._weight_of("price"), out=worth)
        floor = price_floor * worth.mean()
        for piece, known in zip(worth.split(PIECE), self.averages(), strict=True):
            piece.copy_(known.worth(beta, floor))
        return worth

    def _sum_of(self, part: str) -> torch.Tensor:
        if part not in self._sums:
            self._sums[part] = self._vectors.zeros(self._count)
        return self._sums[part]

    def _weight_of(self, part: str) -> float:
        return max(self._weights[part], 1e-30)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; without the parts of which nothing is known."""
        return {"sums": self._sums, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`; the tensors are copied."""
        for part, values in state["sums"].items():
            self._sum_of(part).copy_(values)
        self._weights = dict(state["weights"])
