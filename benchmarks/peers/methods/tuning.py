"""Fine-tuning: which parameters, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

TEXT = ("add_k_proj", "add_v_proj", "context_embedder")
"""Where text enters attention: what comes nearest to the keys and values of cross-attention."""


def parameters_of(model: torch.nn.Module, where: str) -> list[torch.nn.Parameter]:
    """Those of `text` or of `all` of the model, set to be trained."""
    chosen = [p for name, p in model.named_parameters() if where == "all" or any(part in name for part in TEXT)]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def tune(parameters: Iterable[torch.nn.Parameter], loss: Callable[[], torch.Tensor], steps: int, lr: float) -> None:
    """Adam at a flat rate."""
    chosen = list(parameters)
    optimiser = torch.optim.Adam(chosen, lr=lr)
    for _ in range(steps):
        optimiser.zero_grad(set_to_none=True)
        loss().backward()
        optimiser.step()
    for parameter in chosen:
        parameter.requires_grad_(False)
