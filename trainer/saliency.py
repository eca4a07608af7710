"""What each bit is worth at the current mask, by the end-to-end loss: its gradients, and a price.

For a bit m_i, with L_e the erasure and L_p the preservation loss over the whole sampler:
    erase_i    = dL_e / dm_i                 switching the bit off changes L_e by about -erase_i
    preserve_i = dL_p / dm_i                 zero at the base model, where L_p has its minimum
    price_i    = sum_j (dF_j / dm_i)^2 / n   the second order of L_p (Gauss-Newton), by Hutchinson's estimate
All are float32 on the CPU, one flat vector over all sites (`Bits`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch

from safeflux.masks import MaskSet
from safeflux.sites import Site


@dataclass(frozen=True)
class Bits:
    """The bits of several sites in one line: where each site begins, and how to get back."""

    sites: Mapping[str, Site]

    @property
    def count(self) -> int:
        """How many bits there are."""
        return sum(site.num_bits for site in self.sites.values())

    def join(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Site name -> tensor in the site's shape, into one vector."""
        return torch.cat([values[name].reshape(-1) for name in self.sites])

    def split(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """The reverse of `join`."""
        parts = vector.split([site.num_bits for site in self.sites.values()])
        return {name: part.reshape(site.shape) for (name, site), part in zip(self.sites.items(), parts, strict=True)}

    def keep_of(self, masks: MaskSet) -> torch.Tensor:
        """The bits of a mask set as one bool vector; sites that it does not name are kept."""
        whole = {name: masks.get(name, torch.ones(site.shape, dtype=torch.bool)) for name, site in self.sites.items()}
        return self.join(whole)

    def masks_of(self, keep: torch.Tensor) -> MaskSet:
        """The mask set of a bool vector, without the sites that it keeps whole."""
        return MaskSet({name: part.clone() for name, part in self.split(keep).items() if not part.all()})


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

    def state_dict(self) -> dict[str, torch.Tensor | float]:
        """For a checkpoint."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
