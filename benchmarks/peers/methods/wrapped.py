"""Transformers behind something that acts in every step; the pipeline takes them for its own."""

from __future__ import annotations

from typing import Any

import torch


class Wrapped(torch.nn.Module):
    """The model's transformer, and the number of the step that it is in.

    Args:
        transformer: The model's.
        sigmas: The noise levels of the sampler, from 1 to 0.
    """

    def __init__(self, transformer: Any, sigmas: torch.Tensor) -> None:
        super().__init__()
        self.own, self.config, self._sigmas = transformer, transformer.config, sigmas

    @property
    def device(self) -> torch.device:
        """That of the model."""
        device: torch.device = self.own.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """That of the model."""
        dtype: torch.dtype = self.own.dtype
        return dtype

    def cache_context(self, name: str) -> Any:
        """The pipeline asks for it around each call."""
        return self.own.cache_context(name)

    def step_of(self, inputs: dict[str, Any]) -> int:
        """The number of a step, from 0, by its noise level."""
        level = inputs["timestep"].flatten()[0]
        return int((self._sigmas[:-1] - level).abs().argmin())
