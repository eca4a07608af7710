"""From a finished run to a mask file with where it comes from and what it is worth."""

from pathlib import Path
from typing import Any

from safeflux.trainer.config import TrainConfig
from safeflux.trainer.loop import config_digest

from safeflux.fingerprint import fingerprint
from safeflux.maskfile import MaskMeta, save_masks
from safeflux.masks import MaskSet

METHODS = {
    "saliency": "end-to-end saliency and exchange (loss of arXiv 2507.13386)",
    "gates": "hard-concrete gates (arXiv 2507.13386)",
}


def export(
    path: Path, masks: MaskSet, config: TrainConfig, pipe: Any, evaluation: dict[str, Any], licence: str = "Apache-2.0"
) -> str:
    """Write the mask file and return its sha256.

    Args:
        path: Where to.
        masks: What the run found.
        config: The run's configuration.
        pipe: The base model, without masks: its fingerprint goes into the file.
        evaluation: Figures with their seeds and settings; anything that JSON can hold.
        licence: SPDX identifier of the mask's licence.
    """
    meta = MaskMeta(
        category=config.category,
        concepts=tuple(config.prompts.concepts),
        base_model=Path(config.model).name,
        family="flux1",
        fingerprint=fingerprint(pipe.transformer),
        method=METHODS[config.method],
        config_sha256=config_digest(config),
        licence=licence,
        evaluation=evaluation,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_masks(path, masks, meta)
