"""Which bits to switch off and on, given what each is worth. Pure functions of tensors; True = keep."""

import torch
from safeflux.trainer.estimates import Estimates


def exchange(keep: torch.Tensor, estimates: Estimates, beta: float, *, off: int, on: int) -> torch.Tensor:
    """Switch off the on-bits that are worth it most, and on the off-bits whose return is.

    Args:
        keep: The mask as it stands, bool (bits,).
        estimates: What each bit is worth at this mask.
        beta: Weight of preservation beside erasure.
        off: How many bits to switch off at most; none that would raise the loss is.
        on: How many bits to switch back on at most; likewise.
    """
    worth = _worth(estimates, beta)
    return _switch(_switch(keep, ~keep, -worth, on), keep, worth, off)


def _worth(estimates: Estimates, beta: float) -> torch.Tensor:
    """What switching each bit off is worth: (erase + beta * preserve) / (price + mean price / 2).

    The numerator is the first-order gain of the whole loss, the denominator its second-order price. Half the mean
    keeps bits that move nothing from winning by a tiny price. The price also bounds what many bits do together, which
    their slopes alone do not: bits exchanged by slope alone overshoot.
    """
    return (estimates.erase + beta * estimates.preserve) / (estimates.price + 0.5 * estimates.price.mean())


def _switch(keep: torch.Tensor, candidates: torch.Tensor, score: torch.Tensor, count: int) -> torch.Tensor:
    """Flip the best `count` of the candidates, but none with a score of 0 or less."""
    best = torch.where(candidates, score, -torch.inf).topk(min(count, len(keep)))
    out = keep.clone()
    chosen = best.indices[best.values > 0]
    out[chosen] = ~out[chosen]
    return out
