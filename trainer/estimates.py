"""What is known of every bit at the current mask, from the end-to-end loss.

For a bit m_i, with L_e the erasure and L_p the preservation loss over the whole sampler:
    erase_i    = dL_e / dm_i                 switching the bit off changes L_e by about -erase_i
    preserve_i = dL_p / dm_i                 zero at the base model, where L_p has its minimum
    price_i    = sum_j (dF_j / dm_i)^2 / n   the second order of L_p (Gauss-Newton), by Hutchinson's estimate
All are float32 on the CPU, one flat vector over all sites (`Bits`).
"""

from dataclasses import dataclass, fields
from typing import Any

import torch


@dataclass
class Estimates:
    """Running estimates for every bit; `update` blends a round's values in."""

    erase: torch.Tensor
    preserve: torch.Tensor
    price: torch.Tensor
    weight: float = 0.0
    """Total weight of what was blended in, which corrects the start from zero."""

    @classmethod
    def zeros(cls, count: int) -> "Estimates":
        """Nothing known yet."""
        return cls(torch.zeros(count), torch.zeros(count), torch.zeros(count))

    def update(self, fresh: "Estimates", smoothing: float) -> None:
        """Keep `smoothing` of the old values and take the rest from the fresh ones."""
        for part in ("erase", "preserve", "price"):
            getattr(self, part).mul_(smoothing).add_(getattr(fresh, part), alpha=1 - smoothing)
        self.weight = smoothing * self.weight + (1 - smoothing)

    def corrected(self, part: str) -> torch.Tensor:
        """One estimate without the bias of its start from zero."""
        value: torch.Tensor = getattr(self, part)
        return value / self.weight

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
