"""The smallest mask that still erases, on masks whose answer is known."""

import pytest
import torch
from safeflux.trainer.minimise import minimise


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
