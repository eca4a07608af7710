"""A guard whose masked neurons are cut out: what `apply.Undo` is for zeros, for a model that has become smaller.

What could not be cut out is zero, and is read as in any guard. Neurons that are gone stay gone: there is no undo.
"""

from collections.abc import Mapping

import numpy as np
import torch

from safeflux.apply import Fault, Undo, apply_masks_
from safeflux.compact import compact_
from safeflux.errors import ApplyError
from safeflux.masks import MaskSet, check_fit
from safeflux.packed import Keep
from safeflux.record import GONE
from safeflux.removal import Index, keeps, kept_by_site
from safeflux.sites import Site, find_sites, spans
from safeflux.watch import Watch

Places = tuple[Index, ...]
"""What indexes a mask by neurons, or by rows and columns."""


class Removed(Undo):
    """What knows where a compacted model was masked. Made by `remove_masked_`."""

    def __init__(self, rest: Undo, transformer: torch.nn.Module, masks: MaskSet, left: Mapping[str, Places]) -> None:
        """Hold what is masked on the transformer, and which places of cut masks it still has."""
        super().__init__(transformer, masks, ())
        self._rest = rest
        self._left = left

    @property
    def is_final(self) -> bool:
        """Always: neurons are gone."""
        return True

    @property
    def is_done(self) -> bool:
        """Never: it cannot be undone."""
        return False

    def in_force(self) -> MaskSet:
        """Read the model, and return which of the masked bits are off: gone, or zero in every tensor of theirs."""
        now, uncut = self._rest.in_force(), self._uncut()
        found: dict[str, Keep] = {}
        for name, mask in self._masks.items():
            if name in uncut:
                mask[:] = True
            elif name in now:
                mask[self._left.get(name, ...)] = now[name]
            found[name] = mask
        return MaskSet(found)

    def watch(self) -> Watch:
        """Note the model as it is now."""
        return self._rest.watch()

    def faults(self) -> list[Fault]:
        """Return what is not as it was written, and what has another size than it was cut to."""
        return self._rest.faults() + [
            Fault(name, f"was cut to {wanted} and has {got}", is_open=True)
            for name, (wanted, got) in self._uncut().items()
        ]

    def restore_(self) -> None:
        """Refuse.

        Raises:
            ApplyError: Always.
        """
        raise ApplyError(f"cannot undo: {GONE}")

    def refresh_(self) -> None:
        """Switch off again what is there and masked, as `Undo.refresh_` does."""
        self._rest.refresh_()

    def _uncut(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]]:
        """Sites that are not as large as they were cut to: what they should be, and what they are."""
        sites = find_sites(self._transformer)
        shapes = {name: sites[name].shape if name in sites else None for name in self._left}
        wanted = {name: tuple(part.size for part in places) for name, places in self._left.items()}
        return {name: (wanted[name], shape) for name, shape in shapes.items() if shape != wanted[name]}


def remove_masked_(transformer: torch.nn.Module, masks: MaskSet) -> Removed:
    """Cut masked neurons out of a transformer (`compact.compact_`), and return what knows where.

    Raises:
        SafeFluxError: The errors of `compact_`; the model is as before.
    """
    sites = find_sites(transformer)
    check_fit(masks, sites)
    left = _left(sites, masks)
    compact_(transformer, masks)
    rest = MaskSet({name: mask[left[name]] if name in left else mask for name, mask in masks.items()})
    return Removed(apply_masks_(transformer, rest), transformer, masks, left)


def _left(sites: Mapping[str, Site], masks: MaskSet) -> dict[str, Places]:
    """What is left of the masks of sites that are cut: of neurons, and of matrices whose rows or columns they are."""
    cut, neurons = keeps(sites, masks), kept_by_site(sites, masks)
    left: dict[str, Places] = {name: (kept,) for name, kept in neurons.items()}
    for name in masks:
        kept = cut.get(spans(sites[name])[0].tensor)
        if len(sites[name].shape) == 2 and kept is not None:
            whole = (np.arange(size) for size in sites[name].shape)
            left[name] = np.ix_(*(every if some is None else some for some, every in zip(kept, whole, strict=True)))
    return left
