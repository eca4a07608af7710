"""Which bits to switch off and on, given the worth of each. Pure functions of tensors; True = keep."""

import torch


def exchange(keep: torch.Tensor, worth: torch.Tensor, *, off: int, on: int) -> torch.Tensor:
    """Switch off the on-bits that are worth it most, and on the off-bits whose return is.

    Args:
        keep: The mask as it stands, bool (bits,).
        worth: The worth of switching each bit off, float32 (bits,); 0 for a bit that is not to be touched.
        off: How many bits to switch off at most; none that would raise the loss is.
        on: How many bits to switch back on at most; likewise.
    """
    return _switch(_switch(keep, ~keep, -worth, on), keep, worth, off)


def _switch(keep: torch.Tensor, candidates: torch.Tensor, score: torch.Tensor, count: int) -> torch.Tensor:
    """Flip the best `count` of the candidates, but none with a score of 0 or less."""
    best = torch.where(candidates, score, -torch.inf).topk(min(count, len(keep)))
    out = keep.clone()
    chosen = best.indices[best.values > 0]
    out[chosen] = ~out[chosen]
    return out
