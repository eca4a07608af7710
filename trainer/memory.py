"""What a run will need, summed up before it starts, so that a model too big for the machine is refused at once.

Activations are counted by running one sampling step with fake tensors, which have shapes and no values: what autograd
saves of them is what it will save. The rest is arithmetic.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from safeflux.trainer.config import TrainConfig
from safeflux.trainer.factors import gated
from safeflux.trainer.rollout import fast_math, step_inputs
from safeflux.trainer.sampler import Condition, Reference, Sampler
from torch._subclasses.fake_tensor import FakeTensorMode

from safeflux.errors import TrainError
from safeflux.sites import Site, spans
from safeflux.weights import named_weights

_FLOAT = 4
_ESTIMATES = 3
"""Vectors of float32 that the method `saliency` holds a category; `gates` holds log alpha and two moments of Adam."""


@dataclass(frozen=True)
class Memory:
    """Bytes by what they hold."""

    weights: int
    """The transformer."""
    masked_weights: int
    """Masked copies of the tensors that the masks touch, as float32 products and in the model's dtype; the factors and
    their gradients, float32."""
    estimates: int
    """What is known of every bit, and the masks; float32 and bool, in the main memory."""
    activations: int
    """What the backward pass keeps at a time."""

    @property
    def total(self) -> int:
        """All together."""
        return sum(asdict(self).values())

    def __str__(self) -> str:
        """In GB, the largest first."""
        parts = sorted(asdict(self).items(), key=lambda item: -item[1])
        return ", ".join(f"{name.replace('_', ' ')} {size / 1e9:.2f} GB" for name, size in parts)


def estimate_memory(
    transformer: torch.nn.Module,
    sampler: Sampler,
    condition: Condition,
    config: TrainConfig,
    sites: Iterable[Site],
    rows: int,
) -> Memory:
    """Sum up what a run needs.

    Args:
        transformer: The model.
        sampler: The schedule.
        condition: Any encoded prompts; only shapes are read.
        config: The run.
        sites: Those that may be masked.
        rows: How many masks there are.
    """
    kept, largest, hidden = _activations(transformer, sampler, condition, config.batch)
    latents = config.batch * sampler.shape[0] * sampler.shape[1] * _FLOAT * (config.steps + 1)
    activations = {"none": kept * config.steps, "step": kept, "block": hidden + largest}[config.recompute]
    chosen = list(sites)
    bits = sum(site.num_bits for site in chosen)
    return Memory(
        weights=sum(p.numel() * p.element_size() for p in transformer.parameters()),
        masked_weights=_masked_copies(transformer, chosen) + 2 * bits * _FLOAT,
        estimates=rows * bits * (_ESTIMATES * _FLOAT + 2) + 2 * bits * _FLOAT,
        activations=activations + latents,
    )


def _masked_copies(transformer: torch.nn.Module, sites: Iterable[Site]) -> int:
    weights = named_weights(transformer)
    touched = {span.tensor for site in sites for span in gated(spans(site))}
    return sum(weights[name].numel() * (_FLOAT + weights[name].element_size()) for name in touched)


def check_memory(memory: Memory, device: torch.device) -> None:
    """Refuse what does not fit.

    Raises:
        TrainError: More is needed than is free.
    """
    rest = memory.masked_weights + memory.activations  # the weights are loaded already
    if device.type == "cuda":
        needed = {f"on {device}": (rest, torch.cuda.mem_get_info(device)[0]), "": (memory.estimates, _free())}
    else:
        needed = {"": (rest + memory.estimates, _free())}
    for where, (bytes_needed, free) in needed.items():
        if bytes_needed > free:
            raise TrainError(
                f"this run needs about {bytes_needed / 1e9:.1f} GB more{where and ' ' + where}, and "
                f"{free / 1e9:.1f} GB are free: {memory}. Less is needed with recompute=block, a smaller batch, height "
                "and width, or fewer kinds of site."
            )


def _free() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _activations(
    transformer: torch.nn.Module, sampler: Sampler, condition: Condition, batch: int, device: torch.device | None = None
) -> tuple[int, int, int]:
    """Bytes that autograd saves in one step, those of the largest block, and the hidden states between blocks."""
    config: Any = transformer.config
    parameter = next(transformer.parameters())
    device = device or parameter.device
    saved: dict[int, torch.UntypedStorage] = {}
    after_block: list[int] = [0]

    def size() -> int:
        return sum(storage.nbytes() for storage in saved.values())

    with FakeTensorMode(), device:
        twin = _twin(transformer, parameter.dtype)
        own = {p.untyped_storage()._cdata for p in twin.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                saved[storage._cdata] = storage  # held, so that no other takes its number
            return tensor

        blocks = [block for stack in twin.children() if isinstance(stack, torch.nn.ModuleList) for block in stack]
        for block in blocks:
            block.register_forward_hook(lambda *_: after_block.append(size()))
        x = torch.empty(batch, *sampler.shape, requires_grad=True)
        tokens = torch.empty(batch, *condition.tokens.shape[1:], dtype=condition.tokens.dtype)
        pooled = None if condition.pooled is None else torch.empty(batch, condition.pooled.shape[1], dtype=tokens.dtype)
        text_ids = None if condition.text_ids is None else torch.empty(condition.text_ids.shape)
        seen = condition.reference
        image = seen and Reference(torch.empty(batch, *seen.tokens.shape[1:]), torch.empty(seen.ids.shape))
        like = replace(sampler, image_ids=torch.empty(sampler.image_ids.shape))
        inputs = step_inputs(like, x, torch.ones(()), Condition(tokens, pooled, text_ids, image))
        with fast_math(x.device), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            twin(**inputs)
    largest = max((after - before for before, after in pairwise(after_block)), default=size())
    width = int(config.num_attention_heads * config.attention_head_dim)
    num_tokens = tokens.shape[1] + sampler.shape[0]
    return size(), largest, len(blocks) * batch * num_tokens * width * tokens.element_size()


def _twin(transformer: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A model of the same shapes, made in its dtype: fake tensors cannot be cast."""
    model: Any = transformer
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        twin: torch.nn.Module = type(model).from_config(dict(model.config))
        return twin
    finally:
        torch.set_default_dtype(before)
