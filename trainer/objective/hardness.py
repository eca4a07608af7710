"""Which prompts to draw again: those with the largest remaining loss when they were last seen."""

from collections.abc import Sequence

import torch


class Hardness:
    """How much was left of each prompt under each of several states of the masks, when it was last seen there.

    Attributes:
        left: Float32 (states, prompts); nan for a prompt not seen yet, which counts as the mean of the others.
    """

    def __init__(self, states: int, prompts: int, start: float = float("nan")) -> None:
        """`start`: the value of a prompt before it is seen."""
        self.left = torch.full((states, prompts), start)

    def weights(self, state: int, hard_share: float) -> torch.Tensor:
        """How likely each prompt is to be drawn, 1 on average, (prompts,).

        Args:
            state: The row.
            hard_share: The share that depends on how much is left; the rest is the same for all.

        Examples:
            >>> hard = Hardness(1, 4)
            >>> hard.note(0, [0, 1], [0.1, 0.3])
            >>> hard.weights(0, 0.5)
            tensor([0.7500, 1.2500, 1.0000, 1.0000])
        """
        return _weights(self.left[state], hard_share)

    def weights_of_states(self, states: int, hard_share: float) -> torch.Tensor:
        """The same for the first of the states themselves, by the mean of the known values of each, (states,)."""
        return _weights(self.left[:states].nanmean(dim=1), hard_share)

    def note(self, state: int, prompts: Sequence[int], left: Sequence[float]) -> None:
        """Note how much is left of some prompts."""
        self.left[state, prompts] = torch.tensor(left)


def _weights(left: torch.Tensor, hard_share: float) -> torch.Tensor:
    mean = left.nanmean()
    known = torch.where(left.isnan(), mean, left) / mean if mean > 0 else torch.ones_like(left)
    return (1 - hard_share + hard_share * known).clamp_min(1e-6)
