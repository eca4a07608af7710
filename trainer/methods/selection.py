"""Which bits to switch off and on, given the worth of each; True = keep."""

import torch
from safeflux.trainer.objective.vectors import pieces


def exchange_(keep: torch.Tensor, worth: torch.Tensor, *, off: int, on: int) -> torch.Tensor:
    """Switch off the on-bits that are worth it most, and on the off-bits whose return is; in place.

    Args:
        keep: The mask, bool (bits,).
        worth: The worth of switching each bit off, float32 (bits,); 0 for a bit that is not to be touched.
        off: How many bits to switch off at most; none that would raise the loss is.
        on: How many bits to switch back on at most; likewise.

    Returns:
        The mask.
    """
    gone, back = _best(keep, worth, off, is_on=True), _best(keep, worth, on, is_on=False)
    keep[gone], keep[back] = False, True
    return keep


def _best(keep: torch.Tensor, worth: torch.Tensor, count: int, *, is_on: bool) -> torch.Tensor:
    """The bits that are on (or off) whose switch lowers the loss most: `count` of them, or fewer if few lower it."""
    scores, places, start = [], [], 0
    for part, score in pieces(keep, worth):
        candidates, gain = (part, score) if is_on else (~part, -score)
        best = torch.where(candidates, gain, -torch.inf).topk(min(count, len(part)))
        scores.append(best.values)
        places.append(best.indices + start)
        start += len(part)
    best = torch.cat(scores).topk(min(count, len(keep)))
    return torch.cat(places)[best.indices[best.values > 0]]
