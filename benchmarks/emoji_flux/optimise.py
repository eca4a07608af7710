"""How the recipe's transformers are optimised: Muon and AdamW together, one learning rate, a log of the loss."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

NEWTON_SCHULZ = {"momentum": 0.95, "ns_coefficients": (3.4445, -4.775, 2.0315), "ns_steps": 5, "eps": 1e-7}
"""Of Muon, as in torch: its momentum, and its iteration's coefficients, steps and smallest norm."""
WARM_UP, REWARM = 300, 100
"""Steps in which the learning rate rises: of new weights, and of learned ones with new optimisers."""


class Muon(torch.optim.Optimizer):
    """Muon with the Newton-Schulz steps in a dtype that is asked for, all matrices of one shape together.

    torch's own takes matrices only, and its steps in bfloat16 on every machine. On a CPU without units for it that
    took as long as forward and backward: 2.0 s for 11 million weights on one core, and 0.55 s in float32.

    Args:
        weights: Of at least two dimensions; a convolution's kernels are the rows of one matrix.
        lr: Learning rate.
        weight_decay: Share of the weights that a step takes off, at a learning rate of 1.
    """

    def __init__(self, weights: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, **NEWTON_SCHULZ})

    @torch.no_grad()
    def step_in(self, dtype: torch.dtype) -> None:
        """One step; the gradients may be of any dtype."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.shape].append(weight)
            for weights in alike.values():
                momenta = torch.stack([self._momentum(weight, group["momentum"]).flatten(1) for weight in weights])
                updates = orthogonal(momenta.to(dtype), group["ns_coefficients"], group["ns_steps"], group["eps"])
                rate = group["lr"] * 0.2 * max(momenta.shape[1:]) ** 0.5  # the root mean square of AdamW's steps
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view_as(weight), alpha=-rate)

    def _momentum(self, weight: torch.Tensor, momentum: float) -> torch.Tensor:
        """The gradient with Nesterov's momentum, whose buffer is brought up to date."""
        gradient, state = weight.grad, self.state[weight]
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(gradient)).lerp_(gradient, 1 - momentum)
        return torch.lerp(gradient, buffer, momentum)


def orthogonal(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """The nearest orthogonal matrices (n, rows, columns), nearly, by `steps` of the quintic Newton-Schulz iteration.

    Singular values come to lie about 1, not at it, which serves an optimiser as well (Jordan et al. 2024).
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # so that no singular value is over 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Optimisers:
    """Muon (Jordan et al. 2024) for the hidden layers' weights, AdamW for everything else, at one learning rate.

    Against AdamW alone, from the same weights for 250 steps, the loss fell 1.5 times as far, at 1.2 times the time.

    Args:
        model: What they train; its hidden layers are named `blocks`, `block` or `layers`. One without has AdamW alone.
        lr: Learning rate.
        weight_decay: AdamW's; Muon's is 0.02.
        convolutions: Whether Muon has the hidden layers' convolutions too. With it the judge's loss was less than half
            as high after 1,000 steps; the VAE's decoder learned no faster.

    Attributes:
        begun: The run's step at which they were new.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float = 0.0, *, convolutions: bool = False) -> None:
        kinds = (2, 4) if convolutions else (2,)
        hidden = [p for n, p in model.named_parameters() if p.ndim in kinds and re.search(r"blocks?\.|layers\.", n)]
        chosen = set(map(id, hidden))
        others = [p for p in model.parameters() if id(p) not in chosen]
        self._muon = Muon(hidden, lr=lr, weight_decay=0.02) if hidden else None
        self._adamw = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
        self._all = [optimiser for optimiser in (self._muon, self._adamw) if optimiser]
        self.begun = 0

    def step(self, lr: float, dtype: torch.dtype) -> None:
        """One step of both at the learning rate `lr`, Muon's matrix products in `dtype`; gradients are dropped."""
        for optimiser in self._all:
            for group in optimiser.param_groups:
                group["lr"] = lr
        if self._muon:
            self._muon.step_in(dtype)
        self._adamw.step()
        for optimiser in self._all:
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Both optimisers' states."""
        return {"all": [o.state_dict() for o in self._all], "begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        for optimiser, optimiser_state in zip(self._all, state["all"], strict=True):
            optimiser.load_state_dict(optimiser_state)
        self.begun = state["begun"]


def learning_rate(step: int, steps: int, decay_share: float, begun: int = 0) -> float:
    """Share of the peak learning rate: linear warm-up, flat, linear decay to 0 over the last steps.

    Args:
        step: The step to take.
        steps: Of the whole run. While the rate is flat, a run may be given more.
        decay_share: Share of the steps in which the rate falls.
        begun: Step at which the optimisers were last new: 0, or where the run went on from weights alone.
    """
    warm = (step + 1 - begun) / (WARM_UP if begun == 0 else REWARM)
    left = (steps - step) / (decay_share * steps) if decay_share else 1.0
    return max(0.0, min(warm, 1.0, left))


class Log:
    """The smoothed loss, every 50 steps: a line of JSON in a file, and one for the terminal."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._path, self._smooth, self._began, self._count = path, 0.0, time.monotonic(), 0

    def add(self, step: int, loss: float, *, last: bool) -> None:
        """Take in the loss of a step."""
        self._count += 1
        self._smooth += (loss - self._smooth) * max(0.02, 1 / self._count)
        if step % 50 == 0 or last:
            seconds = (time.monotonic() - self._began) / self._count
            line = {"step": step, "loss": round(self._smooth, 4), "s_per_step": round(seconds, 3)}
            with self._path.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
            click.echo(f"{self._path.stem} step {step} loss {self._smooth:.4f} {seconds:.3f} s/step")
