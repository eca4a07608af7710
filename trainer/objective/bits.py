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

    def join(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Site name -> tensor in the site's shape, into one vector."""
        return torch.cat([values[name].reshape(-1) for name in self.sites])

    def split(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """The reverse of `join`; views, which keep the axes before the bits."""
        parts = vector.split([site.num_bits for site in self.sites.values()], dim=-1)
        named = zip(self.sites.items(), parts, strict=True)
        return {name: part.unflatten(-1, site.shape) for (name, site), part in named}

    def of_sites(self, names: Collection[str]) -> torch.Tensor:
        """True for the bits of the named sites; bool (bits,)."""
        return self.join({name: torch.full(site.shape, name in names) for name, site in self.sites.items()})

    def keep_of(self, masks: MaskSet) -> torch.Tensor:
        """The bits of a mask set as one bool vector; sites that it does not name are kept."""
        whole = {
            name: torch.from_numpy(masks[name]) if name in masks else torch.ones(site.shape, dtype=torch.bool)
            for name, site in self.sites.items()
        }
        return self.join(whole)

    def masks_of(self, keep: torch.Tensor) -> MaskSet:
        """The mask set of a bool vector, without the sites that it keeps whole."""
        return MaskSet({name: part for name, part in self.split(keep).items() if not part.all()})
