"""The whole sampler as one differentiable function: all Euler steps of the pipeline's own schedule.

Activations of a step are recomputed in the backward pass (`torch.utils.checkpoint`), so memory holds one step's
activations and the latents of all steps, whatever their number. Shapes: B batch, N image tokens, C channels a token,
L text tokens, D width.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Condition:
    """What a batch is drawn from: `tokens` (B, L, D), `pooled` (B, P), float."""

    tokens: torch.Tensor
    pooled: torch.Tensor

    def __getitem__(self, index: Any) -> "Condition":
        """A part of the batch."""
        return Condition(self.tokens[index], self.pooled[index])


@dataclass(frozen=True)
class Sampler:
    """The schedule and the geometry of a run; made by `sampler_of` from a pipeline.

    Attributes:
        sigmas: Noise levels from 1 to 0, (steps + 1,).
        image_ids: Position ids of the image tokens, (N, 3).
        guidance: Guidance scale of a guidance-distilled model; None for a model without the embedding.
        shape: (N, C) of one sample's packed latents.
    """

    sigmas: torch.Tensor
    image_ids: torch.Tensor
    guidance: float | None
    shape: tuple[int, int]

    def noise(self, count: int, seed: int) -> torch.Tensor:
        """`count` starting points x_T, float32 (count, N, C), the same for the same seed."""
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(seed))


def sampler_of(pipe: Any, *, steps: int, height: int, width: int, guidance: float = 3.5) -> Sampler:
    """Return the sampler that the pipeline itself would run at this size and number of steps (shift included)."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    rows, columns = (size // (pipe.vae_scale_factor * 2) for size in (height, width))
    settings = pipe.scheduler.config
    mu = calculate_shift(
        rows * columns,
        settings.get("base_image_seq_len", 256),
        settings.get("max_image_seq_len", 4096),
        settings.get("base_shift", 0.5),
        settings.get("max_shift", 1.15),
    )
    scheduler = type(pipe.scheduler).from_config(settings)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=mu)
    ids = pipe._prepare_latent_image_ids(1, rows, columns, torch.device("cpu"), torch.float32)
    embeds_guidance = pipe.transformer.config.guidance_embeds
    return Sampler(scheduler.sigmas, ids, guidance if embeds_guidance else None, (len(ids), _channels(pipe)))


def _channels(pipe: Any) -> int:
    return int(pipe.transformer.config.in_channels)


def rollout(
    transformer: torch.nn.Module,
    sampler: Sampler,
    noise: torch.Tensor,
    condition: Condition,
    parameters: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the final latents x_0, (B, N, C), of the whole sampler.

    Args:
        transformer: A FLUX transformer of diffusers.
        sampler: The schedule.
        noise: x_T, (B, N, C).
        condition: The encoded prompts.
        parameters: Tensors that stand in for the transformer's own (masked ones); gradients flow to them.
    """

    def step(x: torch.Tensor, sigma: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        inputs = _inputs(sampler, x, sigma, condition)
        velocity = functional_call(transformer, dict(parameters or {}), kwargs=inputs)[0]
        return x + change * velocity.to(x.dtype)

    x = noise
    for sigma, following in zip(sampler.sigmas[:-1], sampler.sigmas[1:], strict=True):
        if torch.is_grad_enabled():
            x = checkpoint(step, x, sigma, following - sigma, use_reentrant=False, preserve_rng_state=False)
        else:
            x = step(x, sigma, following - sigma)
    return x


def _inputs(sampler: Sampler, x: torch.Tensor, sigma: torch.Tensor, condition: Condition) -> dict[str, Any]:
    guidance = None if sampler.guidance is None else torch.full((len(x),), sampler.guidance)
    return {
        "hidden_states": x,
        "timestep": sigma.expand(len(x)).to(x.dtype),
        "encoder_hidden_states": condition.tokens,
        "pooled_projections": condition.pooled,
        "img_ids": sampler.image_ids,
        "txt_ids": torch.zeros(condition.tokens.shape[1], 3),
        "guidance": guidance,
        "return_dict": False,
    }


@contextmanager
def fast_math(device: torch.device) -> Iterator[None]:
    """bf16 matmuls by autocast; on a CPU also plain attention, whose backward there is many times the faster one."""
    plain_attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16), plain_attention, warnings.catch_warnings():
        # The norms of q and k keep their float32 weights, as they should; torch says that this takes its slower kernel.
        warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
        yield
