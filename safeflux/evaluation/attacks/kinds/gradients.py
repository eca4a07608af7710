"""The pipeline of diffusers as a differentiable function, and the loss that attacks lower with it.

The pipeline's own call is run without its `no_grad`, on encoded prompts and given latents: with the model's own
schedule it is the whole sampler, and with a single noise level it is one step.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from safeflux.evaluation.attacks.victim import Picture, Victim

Encoded = tuple[torch.Tensor, torch.Tensor]
"""Tokens (B, L, D) and pooled vectors (B, P) of prompts."""
REFUSAL = "its pipeline takes no packed latents with encoded prompts, as FLUX.1's does"
_KINDS = ("FluxPipeline",)


def refusal(pipe: Any) -> str | None:
    """Why a pipeline is not differentiated here; None where it is."""
    return None if type(pipe).__name__ in _KINDS else REFUSAL


@contextmanager
def frozen(victim: Victim) -> Iterator[None]:
    """No weight gets a gradient inside; afterwards each is as it was."""
    modules = [m for m in victim.pipe.components.values() if isinstance(m, torch.nn.Module)]
    before = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)


def encode(victim: Victim, prompts: Sequence[str]) -> Encoded:
    """Tokens (B, L, D) and pooled vectors (B, P) of prompts; gradients reach the encoders."""
    length = victim.settings.get("max_sequence_length", 512)
    tokens, pooled, _ = victim.pipe.encode_prompt(
        prompt=list(prompts), prompt_2=None, device=victim.pipe.transformer.device, max_sequence_length=length
    )
    return tokens, pooled


@torch.no_grad()
def latents_of(victim: Victim, images: Sequence[Image.Image]) -> torch.Tensor:
    """Packed latents (B, N, C) of pictures, as the VAE has them on average."""
    pipe = victim.pipe
    vae = pipe.vae
    pixels = pipe.image_processor.preprocess(list(images)).to(vae.device, vae.dtype)
    latents = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
    packed: torch.Tensor = pipe._pack_latents(latents, *latents.shape)
    return packed


def run(
    victim: Victim,
    latents: torch.Tensor,
    encoded: Encoded,
    sigmas: Sequence[float] | None = None,
) -> torch.Tensor:
    """The packed latents at the end of the sampler, from packed latents at its start; differentiable.

    Args:
        victim: The model.
        latents: (B, N, C).
        encoded: Tokens (B, L, D) and pooled vectors (B, P).
        sigmas: Noise levels before the schedule's shift, in place of the model's own schedule.
    """
    settings = dict(victim.settings)
    if sigmas is not None:
        settings |= {"sigmas": list(sigmas), "num_inference_steps": len(sigmas)}
    call = inspect.unwrap(type(victim.pipe).__call__)  # without its no_grad
    out = call(
        victim.pipe,
        latents=latents,
        prompt_embeds=encoded[0],
        pooled_prompt_embeds=encoded[1],
        output_type="latent",
        return_dict=False,
        **settings,
    )
    result: torch.Tensor = out[0]
    return result


class StepLoss:
    """How far one sampling step from a noised picture ends from the picture: flow matching, one noise level at a time.

    At noise level s a picture x is x_s = (1 - s) x + s e. One step from s to 0 ends at x_s - s v, and its distance to x
    is s times the error of the velocity, v - (e - x). So the squared distance, divided by s^2, is the flow-matching
    loss (Lipman et al., arXiv 2210.02747) at the levels that the sampler itself visits.

    Args:
        victim: The model.
        pictures: What it should draw.
    """

    def __init__(self, victim: Victim, pictures: Sequence[Picture]) -> None:
        self.victim, self.pictures = victim, pictures
        self.latents = latents_of(victim, [picture.image for picture in pictures])
        self.raw = raw_levels(victim)
        self.sigmas = [shifted(victim, [level], self.latents.shape[1])[0] for level in self.raw]

    def __call__(self, places: Sequence[int], encoded: Encoded, rng: Any) -> torch.Tensor:
        """The mean over some pictures, at one level at random and with fresh noise."""
        k = int(rng.integers(len(self.raw)))
        level, sigma = self.raw[k], self.sigmas[k]
        picture = self.latents[list(places)]
        noise = torch.from_numpy(rng.standard_normal(picture.shape)).to(picture)
        ended = run(self.victim, (1 - sigma) * picture + sigma * noise, encoded, [level])
        return ((ended - picture) ** 2).mean() / sigma**2


def raw_levels(victim: Victim) -> list[float]:
    """The noise levels of the sampler, from 1 down, before the schedule's shift and without the last, 0."""
    steps = int(victim.settings.get("num_inference_steps", 28))
    return [float(level) for level in np.linspace(1.0, 1 / steps, steps)]


def shifted(victim: Victim, raw: Sequence[float], num_tokens: int) -> list[float]:
    """The noise levels that the pipeline's scheduler makes of others, for latents of so many tokens."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = victim.pipe.scheduler.config
    lengths = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    mu = calculate_shift(num_tokens, *lengths, config.get("base_shift", 0.5), config.get("max_shift", 1.15))
    fresh = type(victim.pipe.scheduler).from_config(config)
    fresh.set_timesteps(sigmas=list(raw), mu=mu)
    return [float(sigma) for sigma in fresh.sigmas[:-1]]
