"""The smallest mask that still erases, on masks whose answer is known."""

import dataclasses

import numpy as np
import pytest
import torch
from safeflux.trainer.run.minimise import minimise
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.session import run

from safeflux.masks.file import load_masks, save_masks
from safeflux.masks.mask_set import MaskSet
from tests.helpers.runs import MASKS, SMALL


@pytest.mark.parametrize("needed", [0, 1, 17, 63, 64])
def test_the_bits_that_are_needed_stay_off_and_few_others(needed):
    """The category is gone as long as the `needed` bits of most worth are off."""
    worth = torch.arange(100.0)
    keep = torch.arange(100) < 36

    def look(mask: torch.Tensor) -> tuple[float, float]:
        return float(mask[100 - needed :].any()) if needed else 0.0, float(mask.float().mean())

    mask, curve = minimise(keep, worth, look, 0.0, steps=8)
    assert not mask[100 - needed :].any()
    assert needed <= int((~mask).sum()) <= max(needed, 1)
    assert curve[0].masked == 64
    assert all(point.right == pytest.approx(1 - point.masked / 100) for point in curve)
    assert all((point.found == 0) == (point.masked >= needed) for point in curve)


def test_a_mask_that_cannot_be_smaller_stays():
    keep = torch.zeros(8, dtype=torch.bool)
    mask, curve = minimise(keep, torch.rand(8), lambda mask: (float(mask.any()), 1.0), 0.0)
    assert torch.equal(mask, keep)
    assert len(curve) > 1


def test_only_a_mask_whose_category_is_gone_is_made_smaller(tmp_path):
    weapons, meta = load_masks(MASKS / "weapons.safetensors")
    site, bits = next((name, bits) for name, bits in weapons.bits.items() if bits.num_off)
    keep = np.ones(bits.shape, dtype=bool)
    keep.flat[0] = False
    useless = tmp_path / "useless.safetensors"
    save_masks(useless, MaskSet({site: keep}), dataclasses.replace(meta, category="alcohol", concepts=("beer-mug",)))
    changes = {"saliency.rounds": "1", "saliency.bits_off": "1", "saliency.bits_on": "0", "minimise": "true"}
    settings = [f"{key}={value}" for key, value in {**SMALL, **changes}.items()]
    given = {"initial": (MASKS / "weapons.safetensors", useless)}
    result = run(plan_run(["weapons", "alcohol"], None, settings, given), tmp_path / "run", lambda report, most: None)
    assert 0 < result.masked["weapons"] < weapons.count.masked
    assert result.masked["alcohol"] == 2  # its first bit, and the round's
    found = {name: seen["validation"]["found"] for name, seen in result.validation.items()}
    assert found["weapons"] == 0.0 < found["alcohol"]
