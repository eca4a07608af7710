"""From a configuration and a pipeline to an `Objective`: draw the pairs, encode them, let the base model draw.

The base model's outputs take minutes. They are kept on disk beside the checkpoint, so that a resumed run reads them
instead of drawing them again.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.options import text_layers_of
from safeflux.trainer.asked.prompts import Pair, PromptSource
from safeflux.trainer.objective.batches import rng_of
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.memory import check_memory, estimate_memory
from safeflux.trainer.objective.objective import Objective
from safeflux.trainer.objective.references import Encoded, References, check_anchors, encode_once, make_references
from safeflux.trainer.objective.vectors import IN_MEMORY, Vectors
from safeflux.trainer.sampling.rollout import sampler_of
from safeflux.trainer.sampling.sampler import Sampler
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from safeflux.disk.atomic import write_atomically
from safeflux.disk.canonical import canonical_json
from safeflux.model.weights import fingerprint

Drawn = Callable[[int, int], None]
"""Called with the number of the base model's outputs so far, and of all of them, for a progress bar."""


@dataclass(frozen=True)
class ReferenceFile:
    """The base model's outputs of a run on disk: a safetensors file with a digest of its inputs and of its tensors."""

    path: Path
    is_writer: bool = True
    """False for all but the first process of a run."""

    def read(self, inputs: str) -> list[torch.Tensor] | None:
        """The tensors that were kept for these inputs; None if there are none, or the file is damaged."""
        try:
            with safe_open(self.path, "pt") as file:
                metadata, tensors = file.metadata(), [file.get_tensor(name) for name in sorted(file.keys())]
        except (OSError, SafetensorError):
            return None
        return tensors if metadata == _metadata(inputs, tensors) else None

    def write(self, inputs: str, tensors: Sequence[torch.Tensor]) -> None:
        """Keep tensors for the next start.

        Raises:
            OSError: The disk is full, or the folder cannot be written to.
        """
        if self.is_writer:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            named = {f"{k:04}": tensor.contiguous() for k, tensor in enumerate(tensors)}
            write_atomically(self.path, save(named, _metadata(inputs, tensors)))


def prepare(
    config: TrainConfig,
    pipe: Any,
    bits: Bits,
    names: Sequence[str],
    compute_dtype: torch.dtype,
    *,
    drawn: Drawn = lambda done, total: None,
    stored: ReferenceFile | None = None,
    vectors: Vectors = IN_MEMORY,
    base: str | None = None,
) -> Objective:
    """Let the base model draw all references of a run, or read those that an earlier start has kept.

    Args:
        config: The run.
        pipe: The pipeline, without masks.
        bits: The bits that may be masked.
        names: The category of each row of gates; those of the configuration first.
        compute_dtype: Of matrix products.
        drawn: See `Drawn`.
        stored: The file that keeps the outputs; none are kept without it.
        vectors: Makes the gradients.
        base: The fingerprint of the whole transformer; None to take it here.

    Raises:
        ConfigError: A prompt and its anchor are the same to the model.
        TrainError: The run needs more memory than there is.
        OSError: The file cannot be written.
    """
    sampler = sampler_of(
        pipe,
        steps=config.steps,
        height=config.height,
        width=config.width,
        guidance=config.guidance,
        max_sequence_length=config.max_sequence_length,
        layers=text_layers_of(config),
        compute_dtype=compute_dtype,
    )
    pools = _pairs(config, names)
    encoded = encode_once(pipe, [pair for pool in pools for pair in pool], config)
    for pool in pools[:-1]:
        check_anchors(encoded, pool, config.max_sequence_length)
    shown, sites = encoded.prompts(pools[0][:1]), bits.sites.values()
    memory = estimate_memory(pipe.transformer, sampler, shown, config, sites, len(names))
    check_memory(memory, next(pipe.transformer.parameters()).device)
    seeds = [int(rng_of(config.seed, "pairs", k, 1).integers(2**62)) for k in range(len(pools))]
    inputs = _inputs(config, base or fingerprint(pipe.transformer), names, compute_dtype)
    if stored and (kept := stored.read(inputs)):
        noises = [sampler.noise(len(pool), seed) for pool, seed in zip(pools, seeds, strict=True)]
        references = _read(config, pools, encoded, noises, kept)
    else:
        references = _draw(config, pipe.transformer, sampler, pools, encoded, seeds, drawn)
        if stored:
            tensors = [tensor for pool in references for tensor in (pool.target, pool.change)]
            tensors += [pool.own for pool in references[:-1] if pool.own is not None]
            stored.write(inputs, tensors)
    return Objective(config, pipe.transformer, sampler, bits, names, references[:-1], references[-1], vectors)


def _pairs(config: TrainConfig, names: Sequence[str]) -> list[list[Pair]]:
    """The pairs of each category, then the prompts to preserve."""
    source = PromptSource(config, beside=names)
    erase = [
        source.erase(name, rng_of(config.seed, "pairs", k), category.erase_pairs or config.prompts.erase_pairs)
        for k, (name, category) in enumerate(config.categories.items())
    ]
    return [*erase, source.preserve(rng_of(config.seed, "pairs", len(erase)), config.prompts.preserve_pairs)]


def _read(
    config: TrainConfig,
    pools: Sequence[Sequence[Pair]],
    encoded: Encoded,
    noises: Sequence[torch.Tensor],
    kept: Sequence[torch.Tensor],
) -> list[References]:
    """References from the tensors that were kept: target and change of each pool, then what the prompts draw."""
    both, owns = kept[: 2 * len(pools)], kept[2 * len(pools) :]
    own = [*(owns if config.erase_terms.takes_things else [None] * len(config.categories)), both[-2]]
    parts = zip(pools, noises, both[::2], both[1::2], own, strict=True)
    return [References(pool, encoded, noise, target, change, one) for pool, noise, target, change, one in parts]


def _draw(
    config: TrainConfig,
    transformer: torch.nn.Module,
    sampler: Sampler,
    pools: Sequence[Sequence[Pair]],
    encoded: Encoded,
    seeds: Sequence[int],
    drawn: Drawn,
) -> list[References]:
    trajectories = [*(category.trajectory for category in config.categories.values()), None]
    total, made = sum(map(len, pools)), []
    for k, pool in enumerate(pools):
        before = sum(map(len, pools[:k]))

        def report(count: int, before: int = before) -> None:
            drawn(before + count, total)

        references = make_references(
            transformer,
            sampler,
            pool,
            encoded,
            seed=seeds[k],
            batch=config.batch,
            trajectory=trajectories[k],
            keeps_own=config.erase_terms.takes_things,
            drawn=report,
        )
        made.append(references)
    return made


def _inputs(config: TrainConfig, base: str, names: Sequence[str], compute_dtype: torch.dtype) -> str:
    """A digest of everything that decides the outputs; the text encoders are taken to belong to the transformer."""
    facts = {
        "config": config.model_dump(mode="json"),
        "names": list(names),
        "compute_dtype": str(compute_dtype),
        "base": base,
        "images": [sha256(path.read_bytes()).hexdigest() for path in config.prompts.images],
    }
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _metadata(inputs: str, tensors: Sequence[torch.Tensor]) -> dict[str, str]:
    # One key: the library writes several in no fixed order.
    return {"references": canonical_json({"inputs": inputs, "tensors": _digest(tensors)})}


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    digest = sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
