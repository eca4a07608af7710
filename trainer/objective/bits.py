"""The bits of several sites as one flat vector, on which the methods work."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from safeflux.families.sites import Site
from safeflux.masks.mask_set import MaskSet


@dataclass(frozen=True)
class Bits:
    """The bits of several sites in one line: where each site begins, and how to get back."""

    sites: Mapping[str, Site]

    @property
    def count(self) -> int:
        """How many bits there are."""
        return sum(site.num_bits for site in self.sites.values())

    def split(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Site name -> the site's part of a vector, in the site's shape: views, which keep the axes before the bits."""
        parts = vector.split([site.num_bits for site in self.sites.values()], dim=-1)
        named = zip(self.sites.items(), parts, strict=True)
        return {name: part.unflatten(-1, site.shape) for (name, site), part in named}

    def mark_(self, row: torch.Tensor, names: Collection[str]) -> None:
        """Write into a bool vector (bits,) which bits belong to the named sites."""
        for name, part in self.split(row).items():
            part.fill_(name in names)

    def write_(self, row: torch.Tensor, masks: MaskSet) -> None:
        """Write a mask set into a bool vector (bits,); sites that it does not name are kept."""
        for name, part in self.split(row).items():
            if name in masks:
                part.copy_(torch.from_numpy(masks[name]))
            else:
                part.fill_(True)

    def keep_of(self, masks: MaskSet) -> torch.Tensor:
        """The bits of a mask set as one bool vector."""
        keep = torch.empty(self.count, dtype=torch.bool)
        self.write_(keep, masks)
        return keep

    def masks_of(self, keep: torch.Tensor) -> MaskSet:
        """The mask set of a bool vector, without the sites that it keeps whole."""
        return MaskSet({name: part for name, part in self.split(keep).items() if not part.all()})
