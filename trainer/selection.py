"""Which bits to switch off and on, given what each is worth. Pure functions of tensors; True = keep."""

import torch
from safeflux.trainer.saliency import Estimates


def switch_off(keep: torch.Tensor, estimates: Estimates, beta: float, count: int) -> torch.Tensor:
    """Switch off the `count` bits that erase most for what they cost the pictures to be kept.

    Score: (erase + beta * preserve) / (price + mean price / 2). The numerator is the first-order gain of the whole
    loss, the denominator its second-order price; half the mean keeps bits that move nothing from winning by a tiny
    price.
    """
    gain = estimates.corrected("erase") + beta * estimates.corrected("preserve")
    price = estimates.corrected("price")
    score = torch.where(keep, gain / (price + 0.5 * price.mean()), -torch.inf)
    best = score.topk(count)
    out = keep.clone()
    out[best.indices[best.values > 0]] = False
    return out


def exchange(keep: torch.Tensor, estimates: Estimates, beta: float, count_on: int, count_off: int) -> torch.Tensor:
    """Switch on the off-bits whose return lowers the whole loss most, and off the on-bits whose loss lowers it most.

    By second order, switching bit i changes the loss by -+(erase_i + beta * preserve_i) + beta * price_i, off and on.
    Only bits that lower the loss are switched.
    """
    slope = estimates.corrected("erase") + beta * estimates.corrected("preserve")
    price = beta * estimates.corrected("price")
    out = keep.clone()
    for candidates, change, count, value in (
        (~keep, slope + price, count_on, True),
        (keep, price - slope, count_off, False),
    ):
        change = torch.where(candidates, change, torch.inf)
        best = change.topk(min(count, len(change)), largest=False)
        out[best.indices[best.values < 0]] = value
    return out
