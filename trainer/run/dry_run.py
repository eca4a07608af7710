"""What a run will need and ask for, before anything is loaded or trained."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.options import detector_of
from safeflux.trainer.asked.prompts import Pair, PromptSource
from safeflux.trainer.objective.laid_out import memory_of, shape_of
from safeflux.trainer.objective.memory import Memory
from safeflux.trainer.objective.objective import rng_of
from safeflux.trainer.run.session import check_run

from safeflux.doctor.memory import main_memory

EXAMPLES = 3
"""Prompts that are shown, with their anchors, a category."""


@dataclass(frozen=True)
class DryRun:
    """The needs of a run, and its first prompts.

    Attributes:
        memory: By part.
        free: Bytes where the model runs, and in the main memory; the same where that is one.
        is_apart: Whether the model runs on an accelerator with memory of its own.
        prompts: Category -> erase prompts; under `preserved` the prompts to preserve.
        detector: The spec of what validates; None for nothing.
        examples: Category -> its first pairs.
    """

    memory: Memory
    free: tuple[int, int]
    is_apart: bool
    prompts: dict[str, int]
    detector: str | None
    examples: dict[str, list[Pair]]

    @property
    def fits(self) -> bool:
        """Whether the free memory suffices."""
        model = self.memory.weights + self.memory.gated_layer + self.memory.activations
        if self.is_apart:
            return model <= self.free[0] and self.memory.estimates <= self.free[1]
        return model + self.memory.estimates <= self.free[1]

    def __str__(self) -> str:
        """For people, a line a fact."""
        device, main = (f"{bytes_ / 1e9:.1f} GB" for bytes_ in self.free)
        counts = ", ".join(f"{count} {name}" for name, count in self.prompts.items())
        lines = [
            f"memory     {self.memory}",
            f"free       {f'{device} on the accelerator, ' if self.is_apart else ''}{main} in the main memory",
            f"prompts    {counts}; the base model draws each once",
            f"validation {self.detector or 'none: no detector is named (--detector)'}",
            *(f"{name}: {pair.prompt!r} -> {pair.anchor!r}" for name, pairs in self.examples.items() for pair in pairs),
            "it fits"
            if self.fits
            else "it does not fit: less is needed with recompute=block, a smaller batch, height "
            "and width, or fewer kinds of site",
        ]
        return "\n".join(lines)


def dry_run(config: TrainConfig, folder: Path) -> DryRun:
    """Check a run as `run` does before it loads the model, and sum up its needs. Text encoders are not counted.

    Raises:
        SafeFluxError: The first thing that is wrong.
    """
    check_run(config, folder)
    is_apart = torch.cuda.is_available()
    device = torch.device("cuda" if is_apart else "cpu")
    main = main_memory().free
    free = (torch.cuda.mem_get_info(device)[0] if is_apart else main, main)
    source = PromptSource(config, beside=tuple(config.categories))
    counts = {name: one.erase_pairs or config.prompts.erase_pairs for name, one in config.categories.items()}
    examples = {
        name: source.erase(name, rng_of(config.seed, "pairs", k), EXAMPLES) for k, name in enumerate(config.categories)
    }
    memory = memory_of(shape_of(config.model), config, len(config.categories), device)
    prompts = {**counts, "preserved": config.prompts.preserve_pairs}
    return DryRun(memory, free, is_apart, prompts, detector_of(config), examples)
