"""A target that respects the trajectory, after ANT (arXiv 2504.12782), as one more output of the base model.

The early steps lay out the picture, the later ones fill in the content of the prompt. So the target holds the first
steps to the base model's own trajectory for the prompt, and from then on turns away from it: with v(c) the velocity for
the prompt and v(a) that for the anchor,
    v = v(a) - reversal * (v(c) - v(a)).
ANT asks this of every step's prediction; here the masked output is compared with the whole sampler's output under
it, so that the loss stays end to end.
"""

from itertools import pairwise

import torch
from safeflux.trainer.asked.config import TrajectoryConfig
from safeflux.trainer.sampling.rollout import velocity
from safeflux.trainer.sampling.sampler import Condition, Sampler


def steered(
    transformer: torch.nn.Module,
    sampler: Sampler,
    noise: torch.Tensor,
    asked: Condition,
    anchor: Condition,
    config: TrajectoryConfig,
) -> torch.Tensor:
    """The base model's final latents x_0, (B, N, C), held to the prompt's trajectory first and turned away then.

    Args:
        transformer: The base model, without masks.
        sampler: The schedule.
        noise: x_T, (B, N, C).
        asked: The prompts that ask for the concept.
        anchor: The prompts to draw instead.
        config: How many steps are held, and how far the rest turns.
    """
    x = noise
    for step, (sigma, following) in enumerate(pairwise(sampler.sigmas)):
        v = velocity(transformer, sampler, x, sigma, asked)
        if step >= config.hold_steps:
            towards = velocity(transformer, sampler, x, sigma, anchor)
            v = towards - config.reversal * (v - towards)
        x = x + (following - sigma) * v
    return x
