"""Which prompts to look at again: those of which most was left when they were last seen."""

from collections.abc import Sequence

import torch


class Hardness:
    """What was left of each prompt under each of several states of the masks, when it was last seen there.

    Attributes:
        left: Float32 (states, prompts); nan where nothing is known, which counts as the mean of what is.
    """

    def __init__(self, states: int, prompts: int, start: float = float("nan")) -> None:
        """`start`: what counts for a prompt before it is seen."""
        self.left = torch.full((states, prompts), start)

    def weights(self, state: int, hard_share: float) -> torch.Tensor:
        """How likely each prompt is to be drawn, 1 on average, (prompts,).

        Args:
            state: The row.
            hard_share: The share that goes by what is left; the rest is alike for all.

        Examples:
            >>> hard = Hardness(1, 4)
            >>> hard.note(0, [0, 1], [0.1, 0.3])
            >>> hard.weights(0, 0.5)
            tensor([0.7500, 1.2500, 1.0000, 1.0000])
        """
        return _weights(self.left[state], hard_share)

    def weights_of_states(self, states: int, hard_share: float) -> torch.Tensor:
        """The same for the first of the states themselves, by the mean of what is known of each, (states,)."""
        return _weights(self.left[:states].nanmean(dim=1), hard_share)

    def note(self, state: int, prompts: Sequence[int], left: Sequence[float]) -> None:
        """Take note of what is left of some prompts."""
        self.left[state, prompts] = torch.tensor(left)


def _weights(left: torch.Tensor, hard_share: float) -> torch.Tensor:
    mean = left.nanmean()
    known = torch.where(left.isnan(), mean, left) / mean if mean > 0 else torch.ones_like(left)
    return (1 - hard_share + hard_share * known).clamp_min(1e-6)
