"""What the other detectors of the embedded model see in the demo's pictures, beside the judge."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from safeflux.demo.result import Measure
from safeflux.detectors.base import Detector
from safeflux.detectors.calibration import calibrate_among
from safeflux.detectors.labels import open_for
from safeflux.evaluation.metrics import Bools
from safeflux.reference.measure import Ask
from safeflux.reference.vocabulary import caption, vocabulary, with_article

Asked = Sequence[tuple[Measure, Ask]]
"""What is counted in each picture, and what it was asked for."""


def second_look(
    spec: str, asked: Asked, before: Sequence[Image.Image], after: Sequence[Image.Image]
) -> tuple[Bools, Bools]:
    """Whether a detector sees what is counted in each picture, before and after the guard, bool (B,) each.

    Its thresholds are chosen on the pictures before, each thing's against those of the others.

    Args:
        spec: The detector.
        asked: B of them.
        before: The plain model's pictures.
        after: The guarded model's.
    """
    things = {concept.name: (with_article(concept.words),) for concept in vocabulary().concepts}
    detector = open_for(spec, {"things": things}, {})
    names = [ask.other if measure is Measure.OTHER and ask.other else ask.concept for measure, ask in asked]
    beside = [ask.concept if name == ask.other else ask.other for name, (_, ask) in zip(names, asked, strict=True)]
    detector = calibrate_among(detector, before, names, beside)
    return _seen(detector, before, asked, names), _seen(detector, after, asked, names)


def _seen(detector: Detector, images: Sequence[Image.Image], asked: Asked, names: Sequence[str]) -> Bools:
    scores, columns = detector(images), [detector.place_of(name) for name in names]
    is_found = scores[np.arange(len(columns)), columns] > detector.thresholds[columns]
    looks = detector.likeliest(images, {style: caption([], style) for style in vocabulary().styles})
    is_style = is_found if looks is None else looks == np.array([ask.style for _, ask in asked])
    measures = np.array([measure for measure, _ in asked])
    conditions = [measures == Measure.STYLE, measures == Measure.RIGHT]
    return np.select(conditions, [is_style, scores.argmax(axis=1) == columns], is_found)
