"""Prompts of a file, drawn by any FLUX pipeline without and with masks; a detector looks at the pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from safeflux.detectors.base import Detector
from safeflux.evaluation.bench import Progress
from safeflux.evaluation.figures import Shares
from safeflux.evaluation.metrics import Bools, Paired
from safeflux.evaluation.prompt_file import Prompt
from safeflux.families.sites import find_sites
from safeflux.masks.mask_set import MaskSet, check_fit
from safeflux.model.apply import apply_masks_
from safeflux.model.weights import find_transformer
from safeflux.reference.measure import draw

ANY = "any of them"


@dataclass(frozen=True)
class PromptFigures:
    """How often each label is found, without and with the masks, on the same prompts and noises.

    Attributes:
        labels: Label -> over all prompts; under `ANY` at least one of them, where they are several.
        categories: Category that the file names -> at least one label, over its prompts.
        thresholds: Label -> the score above which it counts as found.
        shares: How much is masked.
    """

    labels: Mapping[str, Paired]
    categories: Mapping[str, Paired]
    thresholds: Mapping[str, float]
    shares: Shares

    @property
    def rows(self) -> dict[str, Paired]:
        """Every rate under a name for people."""
        by_category = {f"prompts of {name}: found": pair for name, pair in self.categories.items()}
        return {f"{label}: found": pair for label, pair in self.labels.items()} | by_category

    @property
    def bars(self) -> dict[str, Paired]:
        """All of them."""
        return self.rows

    @property
    def facts(self) -> dict[str, str]:
        """The other figures, in words."""
        above = ", ".join(f"{value:g}" for value in dict.fromkeys(self.thresholds.values()))
        return {"found": f"where the score is above {above}", "bits off": str(self.shares)}

    @property
    def pictures(self) -> dict[str, Image.Image]:
        """None: the prompts may be of any kind."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Plain values: every rate with its interval and counts."""
        return {
            "labels": {name: pair.to_json() for name, pair in self.labels.items()},
            "categories": {name: pair.to_json() for name, pair in self.categories.items()},
            "thresholds": dict(self.thresholds),
            "share_masked": self.shares.to_json(),
        }


def measure_prompts(
    pipe: Any,
    masks: MaskSet,
    prompts: Sequence[Prompt],
    detector: Detector,
    labels: Sequence[str],
    *,
    settings: Mapping[str, Any],
    seed: int = 0,
    batch: int = 1,
    progress: Progress = lambda what, done, total: None,
) -> PromptFigures:
    """Draw every prompt twice from the same noise, without and with the masks, and look for the labels.

    Pictures are looked at batch by batch and let go: a set of thousands fits into memory.

    Args:
        pipe: A FLUX pipeline, nothing masked.
        masks: True = keep; written in place while it draws, then taken out again.
        prompts: The prompts to draw.
        detector: Looks at the pictures.
        labels: The labels that it looks for.
        settings: Arguments of the pipeline's call.
        seed: Prompt k has the noise of `seed + k`, unless its file gives it one.
        batch: Pictures drawn at a time.
        progress: Called with the number of pictures drawn so far.

    Raises:
        ConfigError: The detector knows no such label.
        MaskMismatchError: The masks do not fit the model, or there are none.
    """
    thresholds = {label: detector.threshold_of(label) for label in labels}
    transformer = find_transformer(pipe)
    sites = find_sites(transformer)
    check_fit(masks, sites)
    seeds = [seed + k if prompt.seed is None else prompt.seed for k, prompt in enumerate(prompts)]

    def found(what: str) -> Bools:
        parts = []
        for start in range(0, len(prompts), batch):
            texts = [prompt.text for prompt in prompts[start : start + batch]]
            images = draw(pipe, texts, seeds[start : start + batch], batch=batch, settings=settings)
            parts.append(detector.found(images, labels))
            progress(what, start + len(texts), len(prompts))
        return np.concatenate(parts)

    base = found("base model")
    with apply_masks_(transformer, masks):
        masked = found("masked model")
    shares = Shares.of(masks, sites)
    return _count(prompts, thresholds, base, masked, shares)


def _count(
    prompts: Sequence[Prompt],
    thresholds: Mapping[str, float],
    base: Bools,
    masked: Bools,
    shares: Shares,
) -> PromptFigures:
    """Count the labels found, bool (prompts, labels), by label and by the file's categories."""
    by_label = {label: Paired.of(base[:, k], masked[:, k]) for k, label in enumerate(thresholds)}
    if len(thresholds) > 1:
        by_label[ANY] = _any(base, masked)
    categories = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.categories):
        chosen = np.array([name in prompt.categories for prompt in prompts])
        categories[name] = _any(base[chosen], masked[chosen])
    return PromptFigures(by_label, categories, thresholds, shares)


def _any(base: Bools, masked: Bools) -> Paired:
    """At least one label, in bool (prompts, labels)."""
    return Paired.of(*(np.asarray(found.any(axis=1)) for found in (base, masked)))
