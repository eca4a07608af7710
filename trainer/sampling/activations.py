"""Bytes of activations that one sampling step keeps for its backward pass, counted without running it.

The step runs with fake tensors, which have shapes and no values: autograd saves as many bytes of them as of real ones.
Blocks of one kind keep as much as each other, so only the first two of each stack run, and count for the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from safeflux.trainer.processes import blocks_of
from safeflux.trainer.sampling.precision import fast_math
from safeflux.trainer.sampling.rollout import step_inputs
from safeflux.trainer.sampling.sampler import Condition, Reference, Sampler
from torch._subclasses.fake_tensor import FakeTensorMode


@dataclass(frozen=True)
class Activations:
    """Bytes that one step keeps."""

    kept: int
    """All that autograd saves, weights left out."""
    largest: int
    """What it saves from the end of one block to the end of the next, at most."""
    hidden: int
    """The hidden states between the blocks."""


def count_activations(
    transformer: torch.nn.Module,
    sampler: Sampler,
    condition: Condition,
    batch: int,
    device: torch.device | None = None,
    run_all: bool = False,
) -> Activations:
    """Count what one step keeps.

    Args:
        transformer: The model; only its class, configuration and dtype are read.
        sampler: The schedule.
        condition: Any encoded prompts; only shapes are read.
        batch: Pictures in the step.
        device: Where the step will run; None for where the transformer is.
        run_all: Run every block.
    """
    parameter = next(transformer.parameters())
    with FakeTensorMode(), device or parameter.device:
        twin = _twin(transformer, parameter.dtype)
        saved = _Saved(twin)
        stacks = [_Stack(stack, saved, run_all) for stack in twin.children() if isinstance(stack, torch.nn.ModuleList)]
        tokens = torch.empty(batch, *condition.tokens.shape[1:], dtype=condition.tokens.dtype)
        x = torch.empty(batch, *sampler.shape, requires_grad=True)
        with (
            fast_math(x.device, sampler.compute_dtype),
            torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor),
        ):
            twin(**_inputs(sampler, condition, x, tokens))
    config: Any = transformer.config
    width = int(config.num_attention_heads * config.attention_head_dim)
    num_tokens = tokens.shape[1] + sampler.shape[0]
    return Activations(
        kept=saved.size + sum(stack.left_out for stack in stacks),
        largest=max((stack.largest for stack in stacks), default=saved.size),
        hidden=len(blocks_of(twin)) * batch * num_tokens * width * tokens.element_size(),
    )


class _Saved:
    """The storages that autograd saves, but for a model's own weights."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._own = {p.untyped_storage()._cdata for p in model.parameters()}
        self._kept: dict[int, torch.UntypedStorage] = {}
        self._last = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note a tensor that is saved."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._kept[storage._cdata] = storage  # held, so that no other takes its number
        return tensor

    @property
    def size(self) -> int:
        """Bytes so far."""
        return sum(storage.nbytes() for storage in self._kept.values())

    def since_last(self) -> int:
        """Bytes since this was asked last."""
        before, self._last = self._last, self.size
        return self._last - before


class _Stack:
    """Blocks of one kind, of which those after the second hand on what it gave."""

    def __init__(self, blocks: torch.nn.ModuleList, saved: _Saved, run_all: bool) -> None:
        self._saved, self._sizes = saved, [0]
        num_run = len(blocks) if run_all else min(2, len(blocks))
        self._rest = len(blocks) - num_run
        for block in blocks[:num_run]:
            block.forward = self._counted(block.forward)
        for block in blocks[num_run:]:
            block.forward = lambda *args, **kwargs: self._last

    @property
    def left_out(self) -> int:
        """Bytes that the blocks would save that did not run."""
        return self._rest * self._sizes[-1]

    @property
    def largest(self) -> int:
        """Bytes that the largest block saves, with what runs before it."""
        return max(self._sizes)

    def _counted(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._last = forward(*args, **kwargs)
            self._sizes.append(self._saved.since_last())
            return self._last

        return run


def _inputs(sampler: Sampler, condition: Condition, x: torch.Tensor, tokens: torch.Tensor) -> dict[str, Any]:
    """What the twin is called with: the shapes of the condition, for a batch."""
    batch = len(x)
    pooled = None if condition.pooled is None else torch.empty(batch, condition.pooled.shape[1], dtype=tokens.dtype)
    text_ids = None if condition.text_ids is None else torch.empty(condition.text_ids.shape)
    mask = None if condition.mask is None else torch.empty(batch, tokens.shape[1], dtype=tokens.dtype)
    seen = condition.reference
    image = seen and Reference(torch.empty(batch, *seen.tokens.shape[1:]), torch.empty(seen.ids.shape))
    like = replace(sampler, image_ids=torch.empty(sampler.image_ids.shape))
    return step_inputs(like, x, torch.ones(()), Condition(tokens, pooled, text_ids, image, mask))


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
