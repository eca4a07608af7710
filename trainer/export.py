"""From a finished run to mask files with where they come from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safeflux.trainer.config import TrainConfig
from safeflux.trainer.loop import config_digest

from safeflux.maskfile import MaskMeta, save_masks
from safeflux.masks import MaskSet
from safeflux.sites import find_sites
from safeflux.weights import fingerprint

METHODS = {
    "saliency": "end-to-end saliency and exchange (loss of arXiv 2507.13386)",
    "gates": "hard-concrete gates (arXiv 2507.13386)",
}


def export(
    folder: Path,
    masks: Mapping[str, MaskSet],
    config: TrainConfig,
    pipe: Any,
    validation: Mapping[str, Any],
    licence: str = "Apache-2.0",
) -> dict[str, str]:
    """Write one mask file a category, `folder/CATEGORY.safetensors`; returns the sha256 of each.

    Args:
        folder: Where to; it is made.
        masks: What the run found.
        config: The run's configuration.
        pipe: The base model, without masks: its fingerprint goes into the files.
        validation: Category -> what the run saw of it; anything that JSON can hold.
        licence: SPDX identifier of the masks' licence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base, family = fingerprint(pipe.transformer), next(iter(find_sites(pipe.transformer).values())).family
    return {
        category: save_masks(
            folder / f"{category}.safetensors",
            chosen,
            MaskMeta(
                category=category,
                concepts=tuple(config.categories[category].concepts),
                base_model=Path(config.model).name,
                family=family,
                fingerprint=base,
                method=METHODS[config.method],
                config_sha256=config_digest(config),
                licence=licence,
                evaluation=dict(validation.get(category, {})),
            ),
        )
        for category, chosen in masks.items()
    }
