"""The memory that a run needs, estimated before it starts, so that a model too big for the machine is refused at once.

Activations are counted on a run without values (`sampling.activations`). The rest is arithmetic.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass

import torch
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.objective.gating import gated
from safeflux.trainer.processes import blocks_of, own_part
from safeflux.trainer.sampling.activations import count_activations
from safeflux.trainer.sampling.sampler import Condition, Sampler

from safeflux.doctor.memory import main_memory
from safeflux.errors import TrainError
from safeflux.families import MATRIX_KINDS
from safeflux.families.sites import Site
from safeflux.model.weights import named_weights

_FLOAT = 4
_GRADIENTS = 2
"""Vectors of float32 for a batch: its gradient and that of the projection."""
_SUMS = 2
"""Vectors of float32 in which the method `saliency` sums up a round's batches of one kind, a category."""
_GATES = 13
"""Vectors of float32 that the method `gates` holds a category at the end of a step: log alpha, its gradient, two
moments of Adam and a temporary one, the gates with what autograd keeps of their draw, and the gradient by them."""


@dataclass(frozen=True)
class Memory:
    """Bytes by their use."""

    weights: int
    """The transformer; where processes split it, a process's part with the blocks that are whole at a time."""
    gated_layer: int
    """What the largest gated layer needs while it runs: its mask, its masked matrix, and the gradients of both."""
    masks: int
    """The masks, one byte a bit, and a layer's gradient on its way to the estimates; in the main memory. The method
    `gates` has its gates there too."""
    activations: int
    """Activations that the backward pass keeps at a time."""
    estimates: int = 0
    """Not memory: files of the run's folder with the estimates of every bit and the gradients of a batch. The system
    keeps of them in memory what else is free."""

    @property
    def parts(self) -> dict[str, int]:
        """All but the files."""
        return {name: size for name, size in asdict(self).items() if name != "estimates"}

    @property
    def total(self) -> int:
        """All together, without the files."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        """In GB, the largest first."""
        parts = sorted(self.parts.items(), key=lambda item: -item[1])
        return ", ".join(f"{name.replace('_', ' ')} {size / 1e9:.2f} GB" for name, size in parts)


def estimate_memory(
    transformer: torch.nn.Module,
    sampler: Sampler,
    condition: Condition,
    config: TrainConfig,
    sites: Iterable[Site],
    rows: int,
    device: torch.device | None = None,
    shares: int = 1,
) -> Memory:
    """Estimate the memory of a run.

    Args:
        transformer: The model.
        sampler: The schedule.
        condition: Any encoded prompts; only shapes are read.
        config: The run.
        sites: Those that may be masked.
        rows: How many masks there are.
        device: Where the run will be; None for where the transformer is. One on the meta device needs it.
        shares: Among how many processes a transformer that is whole here will be split.
    """
    kept, largest, hidden = astuple(count_activations(transformer, sampler, condition, config.batch, device))
    forwards = 1 if sampler.cfg is None else 2
    latents = config.batch * sampler.shape[0] * sampler.shape[1] * _FLOAT * (config.steps + 1)
    activations = {
        "none": forwards * kept * config.steps,
        "step": forwards * kept,
        "block": forwards * hidden + largest,
    }[config.recompute]
    chosen = list(sites)
    return Memory(
        weights=_weights(transformer, shares),
        gated_layer=_gated_layer(transformer, chosen) * config.many.parts,
        masks=_masks(chosen, config, rows),
        activations=activations + latents,
        estimates=_estimates(sum(site.num_bits for site in chosen), config, rows),
    )


def _weights(transformer: torch.nn.Module, shares: int) -> int:
    """Of a transformer that is split: also all that lies outside of blocks, the running block and the one after it."""
    whole = sum(p.nbytes for p in transformer.parameters())
    own = sum(-(-own_part(p).nbytes // shares) for p in transformer.parameters())
    if own == whole:
        return whole
    blocks = [sum(p.nbytes for p in block.parameters()) for block in blocks_of(transformer)]
    return own + whole - sum(blocks) + 2 * max(blocks)


def estimated_parts(config: TrainConfig) -> int:
    """Of a run by the method `saliency`: vectors of float32 that it keeps from round to round, a category."""
    return 3 if len(config.categories) == 1 else 4  # a category by itself has no other whose work it could undo


def _masks(sites: Sequence[Site], config: TrainConfig, rows: int) -> int:
    """In the main memory: the masks, the products of several for a batch, and these with bits open again or tuned."""
    bits, parts = sum(site.num_bits for site in sites), config.many.parts
    of_a_bit = (
        rows + (parts if parts > 1 else rows > 1) + bool(config.noised.reopened) + _FLOAT * bool(config.noised.tuned)
    )
    if config.method == "gates":
        of_a_bit += rows * _GATES * _FLOAT
    return bits * of_a_bit + max((site.num_bits for site in sites), default=0) * _FLOAT * parts


def _estimates(bits: int, config: TrainConfig, rows: int) -> int:
    """In files: estimates, a round's sums, gradients, the best masks, and which bits may be switched."""
    trained = len(config.categories)
    parts = config.many.parts
    vectors = _GRADIENTS * (parts if parts == 1 else 2 * parts)  # parts are let go of when the next have come
    if config.method == "saliency":
        vectors += trained * (estimated_parts(config) + _SUMS)
    return bits * (vectors * _FLOAT + rows + trained)


def _gated_layer(transformer: torch.nn.Module, sites: Iterable[Site]) -> int:
    """Of a weight site, by element: its mask, the masked matrix and its gradient, and the product of two in float32."""
    weights = named_weights(transformer)
    touched = {span.tensor for site in sites if site.kind in MATRIX_KINDS for span in gated(site)}
    sizes = (weights[name].numel() * (1 + 2 * weights[name].element_size() + _FLOAT) for name in touched)
    return max(sizes, default=0)


def check_memory(memory: Memory, device: torch.device) -> None:
    """Refuse a run that does not fit.

    Raises:
        TrainError: More is needed than is free.
    """
    rest, main = memory.gated_layer + memory.activations, main_memory().free  # the weights are loaded already
    if device.type == "cuda":
        needed = {f"on {device}": (rest, torch.cuda.mem_get_info(device)[0]), "": (memory.masks, main)}
    else:
        needed = {"": (rest + memory.masks, main)}
    for where, (bytes_needed, free) in needed.items():
        if bytes_needed > free:
            raise TrainError(
                f"this run needs about {bytes_needed / 1e9:.1f} GB more{where and ' ' + where}, and "
                f"{free / 1e9:.1f} GB are free: {memory}. Less is needed with recompute=block, a smaller batch, height "
                "and width, or fewer kinds of site."
            )
