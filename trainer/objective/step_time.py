"""The time of one sampling step, measured on a model of a run's shape with random weights; no weight is read."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.gating import GatedModel
from safeflux.trainer.objective.laid_out import LaidOut, fill
from safeflux.trainer.objective.vectors import IN_MEMORY, Vectors
from safeflux.trainer.processes import Processes
from safeflux.trainer.sampling.precision import compute_dtype, fast_math
from safeflux.trainer.sampling.rollout import rollout

_LONG = 5.0
"""Seconds of a step that is not warmed up for."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step of a batch: forward alone, and with the gradient of every bit."""

    forward: float
    gradient: float


def measure_step(
    laid_out: LaidOut, config: TrainConfig, processes: Processes, vectors: Vectors = IN_MEMORY
) -> StepTime:
    """Run one step of a batch, and one with its gradient, by the clock.

    The memory of a run is needed, but for its estimates.

    Args:
        laid_out: The run, whose model gets weights.
        config: The run.
        processes: Those of the run; all of them call this.
        vectors: Makes the gradient.
    """
    device = processes.device
    processes.split_(laid_out.model)  # before it has weights: of a large model none of them could hold all
    model = fill(laid_out.model, device)
    sampler, condition = laid_out.on(device)
    sampler = replace(sampler, sigmas=sampler.sigmas[:2])
    noise = sampler.noise(config.batch, 0).to(device)
    bits = Bits({site.name: site for site in laid_out.sites})
    keep = torch.ones(bits.count, dtype=torch.bool)
    math = fast_math(device, compute_dtype(config.precision, device))

    def forward() -> None:
        with torch.no_grad():
            rollout(model, sampler, noise, condition)

    def gradient() -> None:
        with GatedModel(model, bits, vectors).under(keep) as gates:
            output = rollout(model, sampler, noise, condition, recompute=config.recompute)
            gates.gradient(output.float().square().mean())

    with math:
        return StepTime(_seconds(forward, processes), _seconds(gradient, processes))


def _seconds(work: Callable[[], None], processes: Processes) -> float:
    """The second of two times; the first where that is so long that warming up makes no difference."""
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        work()
        if processes.device.type == "cuda":
            torch.cuda.synchronize(processes.device)
        seconds = processes.from_first(time.perf_counter() - began)  # all have to work as often
        if seconds > _LONG:
            break
    return seconds
