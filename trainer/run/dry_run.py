"""What a run will need and ask for, before anything is loaded or trained."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.options import call_of, detector_of
from safeflux.trainer.asked.prompts import Pair, PromptSource
from safeflux.trainer.objective.batches import rng_of
from safeflux.trainer.objective.laid_out import LaidOut, lay_out_run, shape_of
from safeflux.trainer.objective.memory import Memory, estimated_parts
from safeflux.trainer.objective.step_time import StepTime, measure_step
from safeflux.trainer.objective.vectors import Vectors
from safeflux.trainer.processes import Processes
from safeflux.trainer.run.minimise import STEPS
from safeflux.trainer.run.session import check_run

from safeflux.doctor.memory import main_memory

EXAMPLES = 3
"""Prompts that are shown, with their anchors, a category."""
_KEPT = 2
"""Outputs of the base model that are kept for each prompt, at most: for its anchor, and by itself."""


@dataclass(frozen=True)
class Minutes:
    """The time of a run, at most, by its parts; from one measured step. Text encoders and VAE are not counted."""

    step: StepTime
    references: float
    rounds: float
    validation: float

    @classmethod
    def of(cls, config: TrainConfig, step: StepTime) -> "Minutes":
        """Of a run whose rounds are all needed."""
        categories, batch = config.categories, config.batch
        pairs = sum(one.erase_pairs or config.prompts.erase_pairs for one in categories.values())
        drawn = 2 * -(-pairs // batch) + -(-config.prompts.preserve_pairs // batch)
        saliency, gates = config.saliency, config.gates
        if config.method == "saliency":
            rounds = saliency.rounds + saliency.last_rounds
            gradients = rounds * (saliency.erase_batches * len(categories) + 2 * saliency.preserve_batches)
        else:
            rounds = gates.rounds
            gradients = rounds * gates.steps_per_round * (len(categories) + 1)
        looks = -(-rounds // config.validate_every) + 2 + (STEPS * len(categories) if config.minimise else 0)
        states = 1 if len(categories) == 1 else 2
        again = (1 + (STEPS if config.minimise else 0)) * len(categories) if config.confirm else 0
        sets = looks * (len(categories) + 1) + again
        pictures = sets * states * config.validation_prompts if detector_of(config) else 0
        per_picture = int(call_of(config).get("num_inference_steps", config.steps)) * step.forward / batch
        return cls(
            step,
            references=drawn * config.steps * step.forward / 60,
            rounds=gradients * config.steps * step.gradient / 60,
            validation=pictures * per_picture / 60,
        )

    @property
    def total(self) -> float:
        """All together."""
        return self.references + self.rounds + self.validation

    def __str__(self) -> str:
        """For people."""
        parts = (
            f"{self.references:.1f} base model's outputs, {self.rounds:.1f} rounds, {self.validation:.1f} validation"
        )
        times = f"{self.step.forward:.3g} s forward, {self.step.gradient:.3g} s with its gradient"
        return f"{self.total:.1f} at most: {parts}; from one measured step of a batch, {times}"


@dataclass(frozen=True)
class DryRun:
    """The needs of a run, and its first prompts.

    Attributes:
        memory: By part, of each process.
        free: Bytes for each process where the model runs, and in the main memory; the same where that is one.
        is_apart: Whether the model runs on an accelerator with memory of its own.
        disk: Bytes that the run folder takes at most, the files of estimates among them, and those that are free there.
        minutes: The time; None where the model is too large to measure a step.
        prompts: Category -> erase prompts; under `preserved` the prompts to preserve.
        detector: The spec of what validates; None for nothing.
        examples: Category -> its first pairs.
        processes: How many there are.
    """

    memory: Memory
    free: tuple[int, int]
    is_apart: bool
    disk: tuple[int, int]
    minutes: Minutes | None
    prompts: dict[str, int]
    detector: str | None
    examples: dict[str, list[Pair]]
    processes: int = 1

    @property
    def fits(self) -> bool:
        """Whether the free memory and the free disk suffice."""
        return self.fits_memory and self.disk[0] <= self.disk[1]

    @property
    def fits_memory(self) -> bool:
        """Whether the free memory suffices."""
        if self.is_apart:
            model = self.memory.total - self.memory.masks
            return model <= self.free[0] and self.memory.masks <= self.free[1]
        return self.memory.total <= self.free[1]

    def __str__(self) -> str:
        """For people, a line a fact."""
        device, main = (f"{bytes_ / 1e9:.1f} GB" for bytes_ in self.free)
        needed, left = (f"{bytes_ / 1e9:.2f} GB" for bytes_ in self.disk)
        counts = ", ".join(f"{count} {name}" for name, count in self.prompts.items())
        each = f", for each of {self.processes} processes" if self.processes > 1 else ""
        lines = [
            f"memory     {self.memory}{each}",
            f"free       {f'{device} on the accelerator, ' if self.is_apart else ''}{main} in the main memory{each}",
            f"disk       {needed}, {left} free; {self.memory.estimates / 1e9:.2f} GB of it are estimates, which the "
            "system keeps in memory as far as some is free",
            f"minutes    {self.minutes or 'not measured: the model does not fit'}",
            f"prompts    {counts}; the base model draws each once",
            f"validation {self.detector or 'none: no detector is named (--detector)'}",
            *(f"{name}: {pair.prompt!r} -> {pair.anchor!r}" for name, pairs in self.examples.items() for pair in pairs),
            self._verdict,
        ]
        return "\n".join(lines)

    @property
    def _verdict(self) -> str:
        if not self.fits_memory:
            way_out = "recompute=block, a smaller batch, height and width, or fewer kinds of site"
            return f"it does not fit: less memory is needed with {way_out}"
        if not self.fits:
            return "it does not fit: choose an --out on a larger disk, or fewer prompts.erase_pairs and preserve_pairs"
        return "it fits"


def dry_run(config: TrainConfig, folder: Path) -> DryRun | None:
    """Check a run as `run` does before it loads the model, sum up its needs, and measure one step.

    The step is that of a model of the same shape with random weights: a model with a bundled profile need not be here.
    Under `accelerate launch` every process calls this, and all but the first one return None.

    Raises:
        SafeFluxError: The first thing that is wrong.
    """
    processes = Processes()
    given = check_run(config, folder, processes, needs_model=False)
    device, main = processes.device, main_memory().free // processes.here
    is_apart = device.type == "cuda"
    free = (torch.cuda.mem_get_info(device)[0] if is_apart else main, main)
    source = PromptSource(config, beside=tuple(config.categories))
    counts = {name: one.erase_pairs or config.prompts.erase_pairs for name, one in config.categories.items()}
    examples = {
        name: source.erase(name, rng_of(config.seed, "pairs", k), EXAMPLES) for k, name in enumerate(config.categories)
    }
    laid_out = lay_out_run(shape_of(config.model), config)
    prompts = {**counts, "preserved": config.prompts.preserve_pairs}
    shares = processes.count if processes.splits_weights else 1
    memory = laid_out.memory(config, len(config.categories) + len(given.fixed), device, shares)
    existing = _existing(folder)
    needs = DryRun(
        memory,
        free,
        is_apart,
        (_disk(laid_out, config, sum(prompts.values())) + memory.estimates, shutil.disk_usage(existing).free),
        None,
        prompts,
        detector_of(config),
        examples,
        processes.count,
    )
    if processes.from_first(needs.fits):
        step = measure_step(laid_out, config, processes, Vectors(existing))
        needs = replace(needs, minutes=Minutes.of(config, step))
    processes.leave()
    return needs if processes.is_first else None


def _disk(laid_out: LaidOut, config: TrainConfig, prompts: int) -> int:
    """The base model's outputs in float32, and a checkpoint beside the one that it replaces."""
    tokens, channels = laid_out.sampler.shape
    bits = sum(site.num_bits for site in laid_out.sites)
    kept = estimated_parts(config) if config.method == "saliency" else 3  # log alpha and two moments of Adam
    of_a_bit = 4 * kept + 2  # in float32, beside the masks and the best of them
    return prompts * _KEPT * tokens * channels * 4 + 2 * bits * len(config.categories) * of_a_bit


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    whole = folder.absolute()
    return next(path for path in (whole, *whole.parents) if path.is_dir())
