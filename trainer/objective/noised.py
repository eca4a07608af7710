"""What a model still knows of pictures: the error of one step from the base model's own pictures, noised.

For a picture x_0, noise e and a level s: x_t = (1 - s) x_0 + s e, and a model that knows the picture predicts the
velocity e - x_0 well, whatever the prompt says. Shapes as in `sampler`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from safeflux.trainer.asked.erasure import NoisedConfig
from safeflux.trainer.objective.references import References
from safeflux.trainer.sampling.rollout import velocity
from safeflux.trainer.sampling.sampler import Condition, Sampler

LEAST_PLACE = 0.05
"""Weight of a token where picture and anchor are equal, in units of the mean over the picture."""


@dataclass(frozen=True)
class Sample:
    """Some noised pictures."""

    x: torch.Tensor
    """x_t, (B, N, C)."""
    sigma: torch.Tensor
    """(B,)."""
    towards: torch.Tensor
    """e - x_0, (B, N, C)."""
    place: torch.Tensor
    """How much each token counts, 1 on average over a picture, (B, N)."""

    def velocity(self, transformer: torch.nn.Module, sampler: Sampler, condition: Condition) -> torch.Tensor:
        """A model's prediction, (B, N, C), without guidance by a second forward, which predicts no picture."""
        return velocity(transformer, replace(sampler, cfg=None), self.x, self.sigma, condition)

    def error(self, velocity: torch.Tensor) -> torch.Tensor:
        """Mean squared error of a prediction where the thing is, (B,)."""
        square = (velocity.float() - self.towards).square().mean(dim=2)
        return (square * self.place).mean(dim=1)


def noised(
    pool: References, indices: list[int], config: NoisedConfig, rng: np.random.Generator, device: torch.device
) -> Sample:
    """Noise the base model's pictures of some pairs' prompts; tokens count by how far they are from the anchor's."""
    assert pool.own is not None  # kept for a run with these terms
    picture, anchor = pool.own[indices], pool.target[indices]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = torch.randn(picture.shape, generator=generator)
    sigma = torch.rand(len(indices), generator=generator) * (1 - config.least_sigma) + config.least_sigma
    level = sigma[:, None, None]
    place = (picture - anchor).square().mean(dim=2)
    mean = place.mean(dim=1, keepdim=True)
    place = torch.where(mean > 0, place / mean.clamp_min(1e-12), 1.0) + LEAST_PLACE
    parts = ((1 - level) * picture + level * noise, sigma, noise - picture, place / place.mean(dim=1, keepdim=True))
    return Sample(*(part.to(device) for part in parts))


def known(error: torch.Tensor, base: torch.Tensor, ceiling: float) -> torch.Tensor:
    """How much of pictures is still known, (B,): 1 at the base model's error, 0 at `ceiling` times as much and beyond.

    The scale is logarithmic: a step that doubles a small error counts as much as one that doubles a large one.

    Args:
        error: Of the masked model, (B,).
        base: Of the base model by the pictures' own prompts, (B,).
        ceiling: Above 1.

    Examples:
        >>> known(torch.tensor([1.0, 2.0, 4.0, 9.0]), torch.ones(4), ceiling=4.0)
        tensor([1.0000, 0.5000, 0.0000, 0.0000])
    """
    return (1 - (error / base.clamp_min(1e-8)).log() / math.log(ceiling)).clamp_min(0)
