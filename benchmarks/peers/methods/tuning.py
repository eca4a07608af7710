"""Transformers that were changed: fine-tuning, and what becomes of the copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from benchmarks.peers.material import Material, copied, replaced
from benchmarks.peers.method import Made, Settings

TEXT = ("add_k_proj", "add_v_proj", "context_embedder")
"""Where text enters attention: what comes nearest to the keys and values of cross-attention."""


def fine_tuned(material: Material, settings: Settings, loss: Callable[[torch.nn.Module], torch.Tensor]) -> Made:
    """A copy of the transformer, tuned by `where`, `steps` and `lr` of the settings on the loss of that copy."""
    model, parameters = copied_for(material, settings["where"])
    tune(parameters, partial(loss, model), settings["steps"], settings["lr"])
    return in_place_of(model, parameters)


def in_place_of(model: torch.nn.Module, changed: Iterable[torch.Tensor], state: Any = None) -> Made:
    """Another transformer in the place of the pipeline's; what was changed in it has to be stored."""
    num_bytes = sum(each.numel() * each.element_size() for each in changed)
    return Made(partial(replaced, transformer=model), num_bytes, state)


def copied_for(material: Material, where: str) -> tuple[torch.nn.Module, list[torch.nn.Parameter]]:
    """A copy of the transformer, and those of its parameters that are to be trained, of `text` or of `all`."""
    model = copied(material.pipe)
    chosen = [p for name, p in model.named_parameters() if where == "all" or any(part in name for part in TEXT)]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return model, chosen


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
