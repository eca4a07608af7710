"""The whole sampler as one differentiable function: all Euler steps of the pipeline's own schedule.

Activations are recomputed in the backward pass (`torch.utils.checkpoint`), so that memory holds one step's activations
and the latents of all steps, whatever their number; for models of billions of parameters only one block's, and the
hidden states between blocks. It is the same function for every family: `pipelines` prepares the differences. Shapes as
in `sampler`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise
from typing import Any, Literal, get_args

import torch
from safeflux.trainer.sampling.pipelines import encode, sampler_of
from safeflux.trainer.sampling.sampler import Condition, Sampler
from torch.utils.checkpoint import checkpoint

__all__ = [
    "Condition",
    "Recompute",
    "Sampler",
    "encode",
    "rollout",
    "sampler_of",
    "step_inputs",
    "velocity",
]

Recompute = Literal["none", "step", "block"]
"""Activations that the backward pass recomputes: none, those of each step, or of each step block by block."""


def rollout(
    transformer: torch.nn.Module,
    sampler: Sampler,
    noise: torch.Tensor,
    condition: Condition,
    *,
    recompute: Recompute = "step",
) -> torch.Tensor:
    """Return the final latents x_0, (B, N, C), of the whole sampler.

    The gradient is that of plain autograd whatever is recomputed: a recomputed step or block sees the same tensors.

    Args:
        transformer: A FLUX transformer of diffusers.
        sampler: The schedule.
        noise: x_T, (B, N, C); the latents stay in its dtype and on its device.
        condition: The encoded prompts, and the reference image if there is one.
        recompute: `none` keeps the activations of all steps; `step` those of one, for one more forward; `block` those
            of one block, for two more.

    Raises:
        ValueError: `recompute` is none of these.
    """
    if recompute not in get_args(Recompute):
        raise ValueError(f"recompute: expected one of {get_args(Recompute)}, got {recompute!r}")

    def step(x: torch.Tensor, sigma: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        return x + change * velocity(transformer, sampler, x, sigma, condition, by_block=recompute == "block")

    x = noise
    for sigma, following in pairwise(sampler.sigmas):
        if recompute == "none" or not torch.is_grad_enabled():
            x = step(x, sigma, following - sigma)
        else:
            x = checkpoint(step, x, sigma, following - sigma, use_reentrant=False, preserve_rng_state=False)
    return x


def velocity(
    transformer: torch.nn.Module,
    sampler: Sampler,
    x: torch.Tensor,
    sigma: torch.Tensor,
    condition: Condition,
    *,
    by_block: bool = False,
) -> torch.Tensor:
    """The model's velocity at one noise level, for latents x (B, N, C), in their shape and dtype.

    With classifier-free guidance that of both forwards together. With `by_block` the backward pass recomputes each
    block.
    """
    guided = _velocity(transformer, sampler, x, sigma, condition, by_block)
    if sampler.cfg is None:
        return guided
    negative = replace(sampler.cfg.negative[[0] * len(x)], reference=condition.reference)
    without = _velocity(transformer, sampler, x, sigma, negative, by_block)
    return without + sampler.cfg.scale * (guided - without)


def _velocity(
    transformer: torch.nn.Module,
    sampler: Sampler,
    x: torch.Tensor,
    sigma: torch.Tensor,
    condition: Condition,
    by_block: bool,
) -> torch.Tensor:
    """That of one forward."""
    inputs = step_inputs(sampler, x, sigma, condition)
    with _blocks_recomputed(transformer, by_block, inputs.get("attention_mask")):
        out: torch.Tensor = transformer(**inputs)[0]
    return out[:, : x.shape[1]].to(x.dtype)


def step_inputs(sampler: Sampler, x: torch.Tensor, sigma: torch.Tensor, condition: Condition) -> dict[str, Any]:
    """The transformer's arguments at one noise level, for latents x (B, N, C)."""
    tokens, ids, text_ids = x, sampler.image_ids.to(x.device), condition.text_ids
    if condition.reference is not None:
        tokens = torch.cat([x, condition.reference.tokens.to(x)], dim=1)
        ids = torch.cat([ids, condition.reference.ids.to(ids)])
    if text_ids is None:
        text_ids = torch.zeros(condition.tokens.shape[1], ids.shape[1])
    inputs = {
        "hidden_states": tokens.to(condition.tokens.dtype),
        "timestep": sigma.to(x).expand(len(x)),
        "encoder_hidden_states": condition.tokens,
        "img_ids": ids,
        "txt_ids": text_ids.to(x.device),
        "return_dict": False,
    }
    if sampler.guidance is not None:
        inputs["guidance"] = torch.full((len(x),), sampler.guidance, device=x.device)
    if condition.pooled is not None:
        inputs["pooled_projections"] = condition.pooled
    if condition.mask is not None:  # every image token is seen
        inputs["attention_mask"] = torch.cat([condition.mask, condition.mask.new_ones(tokens.shape[:2])], dim=1)
    return inputs


@contextmanager
def _blocks_recomputed(transformer: Any, is_on: bool, mask: torch.Tensor | None) -> Iterator[None]:
    """Switch the transformer's own checkpointing of blocks to ours, or off; it is put back as it was.

    If `enable_gradient_checkpointing` was called before, that is restored too.
    """
    before = transformer.gradient_checkpointing, transformer._gradient_checkpointing_func
    ours = partial(_checkpoint_block, mask)
    transformer.gradient_checkpointing, transformer._gradient_checkpointing_func = is_on, ours
    try:
        yield
    finally:
        transformer.gradient_checkpointing, transformer._gradient_checkpointing_func = before


def _checkpoint_block(mask: torch.Tensor | None, block: torch.nn.Module, *inputs: Any) -> Any:
    """Run one block; the backward pass runs it again.

    Every block of a model with an attention mask takes it, but diffusers' Chroma leaves it out of the inputs of single
    blocks that are recomputed.
    """
    rest = {} if mask is None or any(value is mask for value in inputs) else {"attention_mask": mask}
    # A tensor that is an argument of its own is let go with its step; inside a tuple it would be kept for all steps.
    lengths = [len(value) if isinstance(value, tuple) else None for value in inputs]
    flat = [part for value in inputs for part in (value if isinstance(value, tuple) else (value,))]

    def run(*flat: Any) -> Any:
        left = iter(flat)
        values = tuple(next(left) if n is None else tuple(islice(left, n)) for n in lengths)
        return block(*values, **rest)

    return checkpoint(run, *flat, use_reentrant=False, preserve_rng_state=False)
