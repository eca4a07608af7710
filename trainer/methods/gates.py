"""Learn the mask as hard-concrete gates: the relaxation of arXiv 2507.13386, after Louizos et al. (arXiv 1712.01312).

A gate has one number a_i (log alpha). With u uniform on (0, 1), a gate is drawn as
    s = sigmoid((log u - log(1 - u) + a) / TEMPERATURE),   z = clamp(s (HIGH - LOW) + LOW, 0, 1)
so that z is exactly 0 or 1 with a finite probability and its gradient reaches a. One draw serves a whole trajectory,
and both trajectories of a step. The mask keeps the bits with a > 0.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from safeflux.trainer.asked.methods import GateConfig
from safeflux.trainer.methods.base import Task

TEMPERATURE, LOW, HIGH = 0.83, -0.1, 1.1
LAMBDA_STEP = 0.02
"""Rate of the dual ascent on lambda."""


def draw_gates(log_alpha: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gates in [0, 1], in the shape of `log_alpha`, which gradients reach."""
    u = torch.rand(log_alpha.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    s = torch.sigmoid((u.log() - (-u).log1p() + log_alpha) / TEMPERATURE)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def share_closed(log_alpha: torch.Tensor) -> torch.Tensor:
    """The expected share of gates that are exactly 0; a scalar."""
    return torch.sigmoid(TEMPERATURE * math.log(-LOW / HIGH) - log_alpha).mean()


class GateMethod:
    """Rounds of Adam steps on the gates' log alpha.

    Attributes:
        beta: Weight of preservation beside erasure.
    """

    def __init__(self, config: GateConfig, task: Task) -> None:
        self._config, self._task, self.beta = config, task, config.beta
        self._log_alpha = torch.where(task.masks[: task.trained], config.initial, -config.initial).requires_grad_()
        self._adam = torch.optim.Adam([self._log_alpha], lr=config.lr)
        self._lambda = 0.0 if config.lambda_ == "auto" else config.lambda_
        self._rounds = 0

    @property
    def masks(self) -> torch.Tensor:
        """The gates that are more likely open than not; bool (categories, bits)."""
        given, trained = self._task.masks, self._task.trained
        learned = torch.where(self._task.may, self._log_alpha.detach() > 0, given[:trained])
        return torch.cat([learned, given[trained:]])

    @property
    def most(self) -> int:
        """Rounds, all of which are run: the best validated masks are the result."""
        return self._config.rounds

    def worth(self, category: int) -> torch.Tensor:
        """A gate is the more closed the smaller its log alpha is."""
        return -self._log_alpha.detach()[category] * self._task.may[category]

    def phase(self, is_erased: Sequence[bool]) -> str | None:
        """`gates`, or None after the last round."""
        return "gates" if self._rounds < self._config.rounds else None

    def advance(self, round_: int, is_erased: Sequence[bool]) -> tuple[float, float]:
        """One round of Adam steps; returns its mean losses."""
        count = self._config.steps_per_round
        losses = [self._step(round_, k) for k in range(count)]
        self._rounds += 1
        erase, preserve = zip(*losses, strict=True)
        return sum(erase) / count, sum(preserve) / count

    def _step(self, round_: int, k: int) -> tuple[float, float]:
        objective, processes, given = self._task.objective, self._task.processes, self._task.masks.float()
        trained, batch = self._task.trained, processes.batch(k)
        drawn = draw_gates(self._log_alpha, objective.generator(round_, k))
        learned = torch.where(self._task.may, drawn, given[:trained])
        gates = torch.cat([learned.detach(), given[trained:]])
        gradient = torch.zeros_like(learned)
        erase = [objective.erase(round_, batch, category, gates) for category in range(trained)]
        for category, slope in enumerate(erase):
            gradient[category] += slope.gradient * dict(slope.others(gates))[category]
        preserve = objective.preserve(round_, batch, gates)
        for row, others in preserve.others(gates):
            if row < trained:
                gradient[row] += self.beta * preserve.gradient * others
        objective.settle(processes)
        self._descend(learned, processes.sum(gradient) / processes.count)
        return processes.mean([slope.loss for slope in erase]), processes.mean([preserve.loss])

    def _descend(self, learned: torch.Tensor, gradient: torch.Tensor) -> None:
        """One step of Adam down the loss, given its gradient by the gates that were drawn."""
        self._adam.zero_grad()
        closed = share_closed(self._log_alpha)
        torch.autograd.backward([learned, self._lambda * closed], [gradient, torch.ones(())])
        self._adam.step()
        self._tune_lambda(closed.item())

    def _tune_lambda(self, share: float) -> None:
        """Dual ascent on the constraint that no more than the target share is closed."""
        if self._config.lambda_ == "auto":
            self._lambda = max(0.0, self._lambda + LAMBDA_STEP * (share / self._config.target_share - 1))

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "log_alpha": self._log_alpha.detach(),
            "adam": self._adam.state_dict(),
            "lambda": self._lambda,
            "rounds": self._rounds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        with torch.no_grad():
            self._log_alpha.copy_(state["log_alpha"])
        self._adam.load_state_dict(deepcopy(state["adam"]))  # not the file that the state may be mapped from
        self._lambda, self._rounds = state["lambda"], state["rounds"]
