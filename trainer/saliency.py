"""Choose bits by what each is worth at the current mask, by the end-to-end loss: its gradients, and a price."""

from typing import Any

import torch
from safeflux.trainer.bits import Bits
from safeflux.trainer.config import SaliencyConfig
from safeflux.trainer.estimates import Estimates, Smoothed
from safeflux.trainer.losses import random_projection
from safeflux.trainer.objective import Objective
from safeflux.trainer.selection import exchange


class SaliencyMethod:
    """Rounds that switch more bits off than on until the concept is gone, then rounds that exchange bits."""

    def __init__(self, config: SaliencyConfig, bits: Bits, objective: Objective, keep: torch.Tensor) -> None:
        self._config, self._bits, self._objective = config, bits, objective
        self.keep = keep
        smoothing = {"erase": config.smoothing, "preserve": config.smoothing, "price": config.price_smoothing}
        self._estimates = Smoothed(bits.count, smoothing)
        self._switched = self._exchanged = 0

    @property
    def most(self) -> int:
        """Rounds at most."""
        return self._config.rounds + self._config.exchange_rounds

    def phase(self, is_erased: bool) -> str | None:
        """`saliency`, `exchange`, or None when all is done."""
        if not is_erased and self._switched < self._config.rounds:
            return "saliency"
        return "exchange" if self._exchanged < self._config.exchange_rounds else None

    def advance(self, round_: int, phase: str) -> tuple[float, float]:
        """One round; returns the mean erasure and preservation loss before its switches."""
        chosen, losses = self._config, self._estimate(round_)
        if phase == "saliency":
            off, on = chosen.bits_off, chosen.bits_on
            self._switched += 1
        else:
            left = 1 - self._exchanged / chosen.exchange_rounds
            off, on = round(chosen.exchange_off * left), round(chosen.exchange_on * left)
            self._exchanged += 1
        self.keep = exchange(self.keep, self._estimates.value, chosen.preserve, off=off, on=on)
        return losses

    def _estimate(self, round_: int) -> tuple[float, float]:
        """Blend one round's estimates in."""
        chosen, fresh = self._config, Estimates.zeros(self._bits.count)
        erased = [self._erase_batch(round_, k, fresh) for k in range(chosen.erase_batches)]
        kept = [self._neutral_batch(round_, k, fresh) for k in range(chosen.neutral_batches)]
        self._estimates.update(fresh)
        return sum(erased) / len(erased), sum(kept) / len(kept)

    def _erase_batch(self, round_: int, k: int, fresh: Estimates) -> float:
        factors = self._bits.factors(self.keep)
        loss = self._objective.erase(round_, k, factors)
        fresh.erase.add_(self._objective.gradient(loss, factors), alpha=1 / self._config.erase_batches)
        return loss.item()

    def _neutral_batch(self, round_: int, k: int, fresh: Estimates) -> float:
        factors, share = self._bits.factors(self.keep), 1 / self._config.neutral_batches
        loss, output = self._objective.preserve(round_, k, factors)
        fresh.preserve.add_(self._objective.gradient(loss, factors, keep_graph=True), alpha=share)
        projection = random_projection(output, self._objective.generator(round_, k))
        fresh.price.add_(self._objective.gradient(projection, factors).square(), alpha=share)
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "keep": self.keep,
            "estimates": self._estimates.state_dict(),
            "switched": self._switched,
            "exchanged": self._exchanged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.keep = state["keep"]
        self._estimates.load_state_dict(state["estimates"])
        self._switched, self._exchanged = state["switched"], state["exchanged"]
