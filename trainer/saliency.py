"""Choose bits by what each is worth at the current masks, by the end-to-end loss: its gradients, and a price."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from safeflux.trainer.config import SaliencyConfig
from safeflux.trainer.estimates import Estimates, Smoothed
from safeflux.trainer.objective import Objective
from safeflux.trainer.processes import Processes
from safeflux.trainer.selection import exchange

BETA_STEP = 0.2
"""Rate of the dual ascent on log beta: a budget missed by its own size raises beta by this much."""
BETA_BOUNDS = (1.0, 100.0)


class SaliencyMethod:
    """Rounds that switch more bits off than on until a category is gone, and as many on as off from then on.

    Attributes:
        masks: True = keep; bool (categories, bits). The last rows may be masks that stay as they are.
        beta: Weight of preservation beside erasure.
    """

    def __init__(
        self,
        config: SaliencyConfig,
        objective: Objective,
        masks: torch.Tensor,
        trained: int,
        may: torch.Tensor,
        processes: Processes,
    ) -> None:
        """`trained`: how many of the rows, the first ones, are to be learned; `may`: bits that can be switched."""
        self._config, self._objective, self._processes = config, objective, processes
        self.masks, self._may = masks, may
        smoothing = dict.fromkeys(("erase", "undo", "preserve"), config.smoothing) | {"price": config.price_smoothing}
        self._estimates = [Smoothed(masks.shape[1], smoothing) for _ in range(trained)]
        self.beta = config.beta_start if config.beta == "auto" else config.beta
        self._rounds = self._last = 0

    @property
    def most(self) -> int:
        """Rounds at most."""
        return self._config.rounds + self._config.last_rounds

    def worth(self) -> torch.Tensor:
        """What each bit being off is worth at the current masks; float32 (trained categories, bits)."""
        return torch.stack([estimates.value.worth(self.beta) for estimates in self._estimates]) * self._may

    def phase(self, is_erased: Sequence[bool]) -> str | None:
        """`saliency`, `exchange`, or None when all is done."""
        if not all(is_erased):
            return "saliency" if self._rounds < self._config.rounds else None
        return "exchange" if self._last < self._config.last_rounds else None

    def advance(self, round_: int, is_erased: Sequence[bool]) -> tuple[float, float]:
        """One round; returns the mean erasure and preservation loss before its switches."""
        losses = self._estimate(round_)
        self._tune_beta(losses[1])
        if all(is_erased):
            off = on = round(self._config.bits_on * (1 - self._last / self._config.last_rounds))
            self._last += 1
        else:
            off, on = self._config.bits_off, self._config.bits_on
            self._rounds += 1
        for k, worth in enumerate(self.worth()):
            count = min(off, on) if is_erased[k] else off
            self.masks[k] = exchange(self.masks[k], worth, off=count, on=on)
        return losses

    def _tune_beta(self, preserve: float) -> None:
        if self._config.beta == "auto":
            missed = preserve / (self._config.preserve_budget * self._objective.variance) - 1
            low, high = BETA_BOUNDS
            self.beta = min(high, max(low, self.beta * math.exp(BETA_STEP * min(missed, 2.0))))

    def _estimate(self, round_: int) -> tuple[float, float]:
        """Blend one round's estimates in."""
        sums, served = (
            [Estimates.zeros(self.masks.shape[1]) for _ in self._estimates],
            torch.zeros(len(self._estimates)),
        )
        erased = [self._erase_batches(round_, k, sums, served) for k in range(len(sums))]
        for estimates, total, times in zip(self._estimates, sums, self._processes.sum(served).tolist(), strict=True):
            if times:
                estimates.update(undo=self._processes.sum(total.undo) / times)
        kept = self._preserve_batches(round_)
        self._objective.settle(self._processes)
        return sum(erased) / len(erased), kept

    def _erase_batches(self, round_: int, category: int, sums: Sequence[Estimates], served: torch.Tensor) -> float:
        """A batch serves its category, and tells the other masks that are on what would bring the category back."""
        count, total, loss = self._config.erase_batches, torch.zeros(self.masks.shape[1]), 0.0
        for k in range(count):
            slope = self._objective.erase(round_, self._processes.batch(k), category, self.masks)
            total += slope.of(category, self.masks, slope.gradient)
            loss += slope.loss
            for other in (c for c in slope.subset if c != category and c < len(sums)):
                sums[other].undo.add_(slope.of(other, self.masks, slope.gradient))
                served[other] += 1
        everywhere = count * self._processes.count
        self._estimates[category].update(erase=self._processes.sum(total) / everywhere)
        return float(self._processes.sum(torch.tensor(loss))) / everywhere

    def _preserve_batches(self, round_: int) -> float:
        """Each batch serves every category whose mask is on in it."""
        count = self._config.preserve_batches
        sums = [Estimates.zeros(self.masks.shape[1]) for _ in self._estimates]
        loss, served = 0.0, torch.zeros(len(sums))
        for k in range(count):
            slope = self._objective.preserve(round_, self._processes.batch(k), self.masks)
            assert slope.projection is not None
            loss += slope.loss
            for category in (c for c in slope.subset if c < len(sums)):
                sums[category].preserve.add_(slope.of(category, self.masks, slope.gradient))
                sums[category].price.add_(slope.of(category, self.masks, slope.projection.square()))
                served[category] += 1
        for estimates, total, times in zip(self._estimates, sums, self._processes.sum(served).tolist(), strict=True):
            if times:
                preserve, price = (self._processes.sum(part) / times for part in (total.preserve, total.price))
                estimates.update(preserve=preserve, price=price)
        return float(self._processes.sum(torch.tensor(loss))) / (count * self._processes.count)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "masks": self.masks,
            "estimates": [estimates.state_dict() for estimates in self._estimates],
            "beta": self.beta,
            "rounds": self._rounds,
            "last": self._last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.masks, self.beta = state["masks"], state["beta"]
        for estimates, saved in zip(self._estimates, state["estimates"], strict=True):
            estimates.load_state_dict(saved)
        self._rounds, self._last = state["rounds"], state["last"]
