"""Which bits to switch off and on, given what each is worth. Pure functions of tensors; True = keep."""

import torch
from safeflux.trainer.estimates import Estimates


def switch_off(keep: torch.Tensor, estimates: Estimates, beta: float, count: int) -> torch.Tensor:
    """Switch off the `count` bits that erase most for what they cost the pictures to be kept."""
    return _switch(keep, keep, _worth(estimates, beta), count)


def exchange(keep: torch.Tensor, estimates: Estimates, beta: float, count_on: int, count_off: int) -> torch.Tensor:
    """Switch on the off-bits whose return lowers the whole loss most, and off the on-bits whose loss lowers it most."""
    worth = _worth(estimates, beta)
    return _switch(_switch(keep, ~keep, -worth, count_on), keep, worth, count_off)


def _worth(estimates: Estimates, beta: float) -> torch.Tensor:
    """What switching each bit off is worth: (erase + beta * preserve) / (price + mean price / 2).

    The numerator is the first-order gain of the whole loss, the denominator its second-order price. Half the mean
    keeps bits that move nothing from winning by a tiny price. The price also bounds what many bits do together, which
    their slopes alone do not: bits exchanged by slope alone overshoot.
    """
    gain = estimates.corrected("erase") + beta * estimates.corrected("preserve")
    price = estimates.corrected("price")
    return gain / (price + 0.5 * price.mean())


def _switch(keep: torch.Tensor, candidates: torch.Tensor, score: torch.Tensor, count: int) -> torch.Tensor:
    """Flip the best `count` of the candidates, but none with a score of 0 or less."""
    best = torch.where(candidates, score, -torch.inf).topk(min(count, len(keep)))
    out = keep.clone()
    chosen = best.indices[best.values > 0]
    out[chosen] = ~out[chosen]
    return out
