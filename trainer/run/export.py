"""From a finished run to mask files with their origin."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.run.base import Base
from safeflux.trainer.run.checkpoint import config_digest

from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.meta import MaskMeta

METHODS = {
    "saliency": "end-to-end saliency and exchange (loss of arXiv 2507.13386)",
    "gates": "hard-concrete gates (arXiv 2507.13386)",
}


def export(
    folder: Path,
    masks: Mapping[str, MaskSet],
    config: TrainConfig,
    base: Base,
    validation: Mapping[str, Any],
    licence: str = "Apache-2.0",
) -> dict[str, str]:
    """Write one mask file a category, `folder/CATEGORY.safetensors`; returns the sha256 of each.

    Args:
        folder: Where to; it is made.
        masks: The masks of the run.
        config: The run's configuration.
        base: The base model: its fingerprint goes into the files.
        validation: Category -> its validation; anything that JSON can hold.
        licence: SPDX identifier of the masks' licence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return {
        category: save_masks(
            folder / f"{category}.safetensors",
            chosen,
            MaskMeta(
                category=category,
                concepts=tuple(config.categories[category].concepts),
                base_model=Path(config.model).name,
                family=base.sites.family,
                fingerprint=base.fingerprint,
                method=METHODS[config.method],
                config_sha256=config_digest(config),
                licence=licence,
                evaluation=dict(validation.get(category, {})),
            ),
        )
        for category, chosen in masks.items()
    }
