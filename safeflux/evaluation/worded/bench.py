"""Draws every set without and with masks from the same noises, and has detectors look. Counts nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from safeflux.detectors.base import Detector, Scores
from safeflux.evaluation.bench import TWO_NOISES, Progress
from safeflux.evaluation.figures import Shares
from safeflux.evaluation.questions import KEPT, MAX_PICTURES
from safeflux.evaluation.worded.questions import Set
from safeflux.families.sites import find_sites
from safeflux.masks.mask_set import MaskSet, check_fit
from safeflux.model.apply import apply_masks_
from safeflux.model.weights import find_transformer
from safeflux.reference.measure import draw

SMALL = 256
"""Pixels a side at most of the pictures that are kept to be compared: thousands of whole ones would fill the memory."""


@dataclass(frozen=True, eq=False)
class Looked:
    """A model's pictures of a set: the scores of each detector, (B, concepts) by its name, and some of them, small."""

    scores: Mapping[str, Scores]
    images: Sequence[Image.Image] = ()


@dataclass(frozen=True, eq=False)
class Seen:
    """What was seen of all sets.

    Attributes:
        sets: The sets by name.
        base: The base model's pictures of each.
        masked: The masked model's; sets for calibration are left out.
        two_noises: The base model's pictures of some neutral prompts, and of the same prompts from other noises.
        shares: How much is masked.
    """

    sets: Mapping[str, Set]
    base: Mapping[str, Looked]
    masked: Mapping[str, Looked]
    two_noises: tuple[Sequence[Image.Image], Sequence[Image.Image]]
    shares: Shares


def look(
    pipe: Any,
    masks: MaskSet,
    sets: Mapping[str, Set],
    detectors: Mapping[str, Detector],
    *,
    settings: Mapping[str, Any],
    batch: int = 1,
    progress: Progress = lambda what, done, total: None,
) -> Seen:
    """Draw everything, batch by batch, and let the detectors look at once.

    Args:
        pipe: A FLUX pipeline, nothing masked.
        masks: True = keep; written in place while it draws, then taken out again.
        sets: What is drawn.
        detectors: By their names.
        settings: Arguments of the pipeline's call.
        batch: Pictures drawn at a time.
        progress: Called with the number of pictures drawn so far.

    Raises:
        MaskMismatchError: The masks do not fit the model, or there are none.
    """
    transformer = find_transformer(pipe)
    sites = find_sites(transformer)
    check_fit(masks, sites)

    def drawn(what: str, chosen: Sequence[Set]) -> dict[str, Looked]:
        artist = Artist(pipe, settings, batch, what, sum(len(one.asks) for one in chosen), progress)
        return {one.name: artist.look(one, detectors, SMALL if one.name in KEPT else None) for one in chosen}

    base = drawn("base model", list(sets.values()))
    with apply_masks_(transformer, masks):
        masked = drawn("masked model", [one for one in sets.values() if not one.is_calibration])
    first = sets.get(KEPT[0]) or sets[KEPT[1]]
    again = Set(first.name, first.asks[:TWO_NOISES], first.first_seed + MAX_PICTURES // 2)
    others = Artist(pipe, settings, batch, "another noise", len(again.asks), progress).look(again, {}, SMALL).images
    return Seen(sets, base, masked, (base[first.name].images[: len(others)], others), Shares.of(masks, sites))


class Artist:
    """Draws sets with a model as it is, and has detectors look.

    Args:
        pipe: The pipeline.
        settings: Arguments of its call.
        batch: Pictures drawn at a time.
        what: The name of the work, for progress.
        total: Pictures of all sets.
        progress: Called with the number of pictures drawn so far.
    """

    def __init__(
        self, pipe: Any, settings: Mapping[str, Any], batch: int, what: str, total: int, progress: Progress
    ) -> None:
        self._pipe, self._settings, self._batch = pipe, settings, batch
        self._report: Callable[[int], None] = lambda done: progress(what, done, total)
        self._done = 0

    def look(self, one: Set, detectors: Mapping[str, Detector], side: int | None) -> Looked:
        """Draw a set batch by batch.

        Args:
            one: The set.
            detectors: Those who look, by their names.
            side: Pixels a side, at most, of the pictures that are kept; None to keep none.
        """
        parts: dict[str, list[Scores]] = {name: [] for name in detectors}
        kept: list[Image.Image] = []
        for start in range(0, len(one.asks), self._batch):
            prompts = [ask.prompt for ask in one.asks[start : start + self._batch]]
            images = draw(self._pipe, prompts, one.first_seed + start, batch=self._batch, settings=self._settings)
            for name, detector in detectors.items():
                parts[name].append(detector(images))
            kept += [small(image, side) for image in images] if side else []
            self._done += len(prompts)
            self._report(self._done)
        return Looked({name: np.concatenate(scores) for name, scores in parts.items()}, kept)


def small(image: Image.Image, side: int) -> Image.Image:
    """The picture in RGB, scaled down to some pixels a side where it is larger."""
    copy = image.convert("RGB")
    copy.thumbnail((side, side), Image.Resampling.LANCZOS)
    return copy
