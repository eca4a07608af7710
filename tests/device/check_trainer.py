"""Training on a device learns what it learns on the CPU, and goes on there from a checkpoint."""

import pytest
import torch
from safeflux.trainer.processes import Processes
from safeflux.trainer.run.loop import Run
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.validation import JudgeValidator

from safeflux.masks.mask_set import MaskSet
from safeflux.reference.judge import Judge
from safeflux.reference.model import load_pipeline

SMALL = {
    "batch": 2,
    "steps": 1,
    "prompts.erase_pairs": 6,
    "prompts.preserve_pairs": 8,
    "validation_prompts": 2,
    "call.num_inference_steps": 2,
    "saliency.warm_up": 0,
    "saliency.erase_batches": 1,
    "saliency.preserve_batches": 2,
}


class On(Processes):
    """One process, on a device of the check's choice."""

    def __init__(self, device):
        super().__init__()
        self._device = device

    @property
    def device(self):
        return self._device


def planned(**changes):
    settings = [f"{key}={value}" for key, value in {**SMALL, **changes}.items()]
    return plan_run(["weapons", "tobacco"], None, settings, {})


def trained(config, folder, device):
    training = Run(config, load_pipeline().to(device), folder, On(device))
    return training, list(training.rounds())


@pytest.mark.parametrize(
    "changes",
    [{"saliency.rounds": 1}, {"method": "gates", "gates.rounds": 1, "gates.steps_per_round": 2, "gates.initial": 0.1}],
    ids=["saliency", "gates"],
)
def test_a_run(device, tmp_path, changes):
    config = planned(**changes)
    (there, rounds), (here, expected) = (trained(config, tmp_path / d.type, d) for d in (device, torch.device("cpu")))
    assert len(rounds) == len(expected) > 0
    for ours, theirs in zip(rounds, expected, strict=True):
        assert ours.erase_loss == pytest.approx(theirs.erase_loss, rel=0.05)
        assert ours.preserve_loss == pytest.approx(theirs.preserve_loss, rel=0.5, abs=1e-3)
    off, also = ~there.masks, ~here.masks
    if also.any():
        assert (off & also).sum() >= 0.8 * also.sum()  # sums in bfloat16 are rounded otherwise
    again = Run(config, load_pipeline().to(device), tmp_path / device.type, On(device))
    assert list(again.rounds()) == []  # all are done
    assert torch.equal(again.method.masks, there.method.masks)


def test_a_validation(device):
    validator = JudgeValidator(load_pipeline().to(device), Judge(), planned())
    assert validator.found("weapons", MaskSet({})) == 1
