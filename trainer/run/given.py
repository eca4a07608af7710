"""Masks that a run is given: those that it starts from, and those of other categories that it trains beside."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safeflux.trainer.asked.config import TrainConfig

from safeflux.errors import ConfigError, MaskMismatchError
from safeflux.families.fingerprint import same_base
from safeflux.families.sites import Site
from safeflux.masks.file import load_masks
from safeflux.masks.mask_set import MaskSet, check_fit
from safeflux.masks.meta import MaskMeta


@dataclass(frozen=True)
class GivenMasks:
    """The mask files of a configuration, read and sorted by category."""

    initial: Mapping[str, MaskSet]
    """Category of this run -> the mask that it starts from."""
    fixed: Mapping[str, MaskSet]
    """Other category -> its mask, which stays as it is."""
    metas: Mapping[Path, MaskMeta]
    """The metadata of each file."""
    concepts: Mapping[str, tuple[str, ...]]
    """Other category -> the concepts that its mask erases."""

    @classmethod
    def read(cls, config: TrainConfig) -> "GivenMasks":
        """Read the files of `initial` and `together_with`.

        Raises:
            MaskFileError: A file is damaged, or is no mask file.
            ConfigError: A mask of a category that does not belong in its list.
        """
        initial, fixed = (
            [(path, *load_masks(path)) for path in paths] for paths in (config.initial, config.together_with)
        )
        for path, _, meta in initial:
            if meta.category not in config.categories:
                raise ConfigError(
                    f"initial: a mask of the category {meta.category!r} ({path}), which this run does not train; "
                    f"expected one of {', '.join(config.categories)}. To train beside it, name it in together_with "
                    "(--with)."
                )
        for path, _, meta in fixed:
            if meta.category in config.categories:
                raise ConfigError(
                    f"together_with: a mask of the category {meta.category!r} ({path}), which this run trains itself; "
                    "expected another category. To start from it, name it in initial (--initial)."
                )
        return cls(
            {meta.category: masks for _, masks, meta in initial},
            {meta.category: masks for _, masks, meta in fixed},
            {path: meta for path, _, meta in (*initial, *fixed)},
            {meta.category: meta.concepts for _, _, meta in fixed},
        )

    def check_sites(self, sites: Mapping[str, Site]) -> None:
        """Make sure that every mask fits the sites of the model; a mask that keeps everything fits any.

        Raises:
            MaskMismatchError: The model lacks a site of a mask, or has it in another shape.
        """
        for masks in (*self.initial.values(), *self.fixed.values()):
            if masks:
                check_fit(masks, sites)

    def check_base(self, fingerprint: str) -> None:
        """Make sure that every mask was made for the base model of this run.

        Raises:
            MaskMismatchError: A mask is for other weights.
        """
        for path, meta in self.metas.items():
            if not same_base(meta.fingerprint, fingerprint):
                raise MaskMismatchError(
                    f"{path}: made for other base weights ({meta.base_model}), not for the model of this run; use a "
                    "mask that was trained for this model"
                )
