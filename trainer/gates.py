"""Learn the mask as hard-concrete gates: the relaxation of arXiv 2507.13386, after Louizos et al. (arXiv 1712.01312).

A gate has one number a_i (log alpha). With u uniform on (0, 1), a gate is drawn as
    s = sigmoid((log u - log(1 - u) + a) / TEMPERATURE),   z = clamp(s (HIGH - LOW) + LOW, 0, 1)
so that z is exactly 0 or 1 with a finite probability and its gradient reaches a. One draw serves a whole trajectory,
and both trajectories of a step. The mask keeps the bits with a > 0.
"""

import math
from typing import Any

import torch
from safeflux.trainer.bits import Bits
from safeflux.trainer.config import GateConfig
from safeflux.trainer.objective import Objective

TEMPERATURE, LOW, HIGH = 0.83, -0.1, 1.1


def draw_gates(log_alpha: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gates in [0, 1], in the shape of `log_alpha`, which gradients reach."""
    u = torch.rand(log_alpha.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    s = torch.sigmoid((u.log() - (-u).log1p() + log_alpha) / TEMPERATURE)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def share_closed(log_alpha: torch.Tensor) -> torch.Tensor:
    """The expected share of gates that are exactly 0; a scalar."""
    return torch.sigmoid(TEMPERATURE * math.log(-LOW / HIGH) - log_alpha).mean()


class GateMethod:
    """Rounds of Adam steps on the gates' log alpha."""

    def __init__(self, config: GateConfig, bits: Bits, objective: Objective, keep: torch.Tensor) -> None:
        self._config, self._bits, self._objective = config, bits, objective
        start = torch.where(keep, config.initial, -config.initial)
        self._log_alpha = start.requires_grad_()
        self._adam = torch.optim.Adam([self._log_alpha], lr=config.lr)
        self._rounds = 0

    @property
    def keep(self) -> torch.Tensor:
        """The gates that are more likely open than not."""
        return self._log_alpha.detach() > 0

    @property
    def most(self) -> int:
        """Rounds, all of which are run: the best validated mask is the result."""
        return self._config.rounds

    def phase(self, is_erased: bool) -> str | None:
        """`gates`, or None after the last round."""
        return "gates" if self._rounds < self._config.rounds else None

    def advance(self, round_: int, phase: str) -> tuple[float, float]:
        """One round of Adam steps; returns its mean losses."""
        losses = [self._step(round_, k) for k in range(self._config.steps_per_round)]
        self._rounds += 1
        erase, preserve = zip(*losses, strict=True)
        return sum(erase) / len(losses), sum(preserve) / len(losses)

    def _step(self, round_: int, k: int) -> tuple[float, float]:
        chosen = self._config
        gates = draw_gates(self._log_alpha, self._objective.generator(round_, k))
        factors = self._bits.factors(gates)
        erase = self._objective.erase(round_, k, factors)
        gradient = self._objective.gradient(erase, factors)
        preserve, _ = self._objective.preserve(round_, k, factors)
        gradient += chosen.preserve * self._objective.gradient(preserve, factors)
        self._adam.zero_grad()
        torch.autograd.backward([gates, chosen.share * share_closed(self._log_alpha)], [gradient, torch.ones(())])
        self._adam.step()
        return erase.item(), preserve.item()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"log_alpha": self._log_alpha.detach(), "adam": self._adam.state_dict(), "rounds": self._rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        with torch.no_grad():
            self._log_alpha.copy_(state["log_alpha"])
        self._adam.load_state_dict(state["adam"])
        self._rounds = state["rounds"]
