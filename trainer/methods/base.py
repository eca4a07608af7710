"""The interface of a method of choosing bits: its task, and its calls by a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from safeflux.trainer.objective.objective import Objective
from safeflux.trainer.objective.vectors import IN_MEMORY, Vectors
from safeflux.trainer.processes import Processes


@dataclass(frozen=True)
class Task:
    """The input of a method of choosing bits."""

    objective: Objective
    masks: torch.Tensor
    """Where it starts: True = keep, bool (categories, bits)."""
    trained: int
    """How many of these rows, the first ones, are to be learned; the others stay as they are."""
    may: torch.Tensor
    """Bits of each trained category that can be switched, bool (trained, bits)."""
    processes: Processes
    places: torch.Tensor | None = None
    """Indices of the bits that estimates are kept of; all, without. No other is to be switched."""
    vectors: Vectors = IN_MEMORY
    """Makes the estimates."""


class Method(Protocol):
    """A way to choose the bits, round by round."""

    @property
    def masks(self) -> torch.Tensor:
        """As they stand: True = keep, bool (categories, bits); the trained ones first."""

    @property
    def beta(self) -> float:
        """Weight of preservation beside erasure."""

    @property
    def most(self) -> int:
        """Rounds at most."""

    def worth(self, category: int) -> torch.Tensor:
        """The worth of switching off each bit of a trained category, the larger the better; float32 (bits,)."""

    def phase(self, is_erased: Sequence[bool]) -> str | None:
        """The name of the next round's phase, given which categories are erased; None when all rounds are done."""

    def advance(self, round_: int, is_erased: Sequence[bool]) -> tuple[float, float]:
        """Do it; return the mean erasure and preservation loss on the way."""

    def state_dict(self) -> dict[str, Any]:
        """All that goes into a checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
