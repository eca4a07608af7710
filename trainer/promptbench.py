"""Prompts of a file, drawn by any FLUX pipeline without and with masks, and what a detector finds in the pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safeflux.trainer.bench import Progress
from safeflux.trainer.figures import Shares
from safeflux.trainer.metrics import Bools, Paired

from safeflux.apply import apply_masks_
from safeflux.detectors import Detector
from safeflux.masks import MaskSet, check_fit
from safeflux.promptfile import Prompt
from safeflux.reference.measure import draw
from safeflux.sites import find_sites
from safeflux.weights import find_transformer

ANY = "any of them"


@dataclass(frozen=True)
class PromptFigures:
    """How often each label is found, without and with the masks, on the same prompts and noises.

    Attributes:
        labels: Label -> over all prompts; under `ANY` at least one of them, where they are several.
        categories: Category that the file names -> at least one label, over its prompts.
        threshold: Above which score a label counts as found.
        shares: How much is masked.
    """

    labels: Mapping[str, Paired]
    categories: Mapping[str, Paired]
    threshold: float
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
        """What is no rate, in words."""
        return {"found": f"where the score is above {self.threshold:g}", "bits off": str(self.shares)}

    def to_json(self) -> dict[str, Any]:
        """Plain values: every rate with its interval and counts."""
        return {
            "labels": {name: pair.to_json() for name, pair in self.labels.items()},
            "categories": {name: pair.to_json() for name, pair in self.categories.items()},
            "threshold": self.threshold,
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
        prompts: What to draw.
        detector: What looks.
        labels: What it looks for.
        settings: What the pipeline is called with.
        seed: Prompt k has the noise of `seed + k`, unless its file gives it one.
        batch: Pictures drawn at a time.
        progress: Told how many pictures are drawn.

    Raises:
        ConfigError: The detector knows no such label.
        MaskMismatchError: The masks do not fit the model, or there are none.
    """
    for label in labels:
        detector.place_of(label)
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
    return _count(prompts, labels, base, masked, detector.threshold, shares)


def _count(
    prompts: Sequence[Prompt],
    labels: Sequence[str],
    base: Bools,
    masked: Bools,
    threshold: float,
    shares: Shares,
) -> PromptFigures:
    """Count what is found, bool (prompts, labels), by label and by the file's categories."""
    by_label = {label: Paired.of(base[:, k], masked[:, k]) for k, label in enumerate(labels)}
    if len(labels) > 1:
        by_label[ANY] = _any(base, masked)
    categories = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.categories):
        chosen = np.array([name in prompt.categories for prompt in prompts])
        categories[name] = _any(base[chosen], masked[chosen])
    return PromptFigures(by_label, categories, threshold, shares)


def _any(base: Bools, masked: Bools) -> Paired:
    """At least one label, in bool (prompts, labels)."""
    return Paired.of(*(np.asarray(found.any(axis=1)) for found in (base, masked)))
