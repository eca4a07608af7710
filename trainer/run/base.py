"""The base model of a run: what is read of its weights while they are whole, the choice of its sites, and it masked."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.gating import GatedModel
from safeflux.trainer.processes import is_split

from safeflux.errors import ConfigError
from safeflux.families.sites import Site, Sites, find_sites
from safeflux.masks.mask_set import MaskSet
from safeflux.model.apply import apply_masks_
from safeflux.model.weights import fingerprint


@dataclass(frozen=True)
class Base:
    """The sites and the fingerprint of a frozen transformer."""

    sites: Sites
    fingerprint: str

    @classmethod
    def of(cls, transformer: torch.nn.Module) -> Self:
        """Freeze a transformer, without masks and not yet split among processes, and read both."""
        frozen = transformer.requires_grad_(False).eval()
        return cls(find_sites(frozen), fingerprint(frozen))


@contextmanager
def masked(transformer: Any, masks: MaskSet) -> Iterator[None]:
    """The transformer under masks, which may be none, for as long as the context is open.

    They are written into the weights. Where these are split among processes each layer is masked while it runs, which
    gives the same pictures and takes a little longer.
    """
    if not masks:
        yield
    elif is_split(transformer):
        bits = Bits({name: site for name, site in find_sites(transformer).items() if name in masks})
        with GatedModel(transformer, bits).under(bits.keep_of(masks), learns=False):
            yield
    else:
        with apply_masks_(transformer, masks):
            yield


def choose_sites(config: TrainConfig, sites: Mapping[str, Site]) -> dict[str, list[str]]:
    """Category -> names of the sites that its mask may touch.

    Raises:
        ConfigError: A pattern matches no site, or a category is left without one.
    """
    of_kinds = [name for name, site in sites.items() if site.kind in config.kinds]
    of_run = _matches("sites", config.sites, of_kinds, f"of the kinds {', '.join(config.kinds)}")
    chosen = {}
    for category, asked in config.categories.items():
        key = f"categories.{category}.sites"
        of_category = _matches(key, asked.sites, list(sites), "of the model")
        chosen[category] = [name for name in of_run if name in of_category]
        if not chosen[category]:
            raise ConfigError(f"{key}: none of these sites is among the run's, which are {_some(of_run)}")
    return chosen


def _matches(key: str, patterns: Sequence[str], names: Sequence[str], which: str) -> list[str]:
    """The names that match a pattern, in their order."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"{key}: {pattern!r} matches none of the {len(names)} sites {which}; they have names such as "
                f"{_some(names)}"
            )
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3])
