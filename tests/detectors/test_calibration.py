"""Thresholds are chosen on the base model's own pictures, and what is found there is counted."""

import numpy as np
import pytest
from PIL import Image

from safeflux.detectors.base import Detector, Wanted, same_threshold
from safeflux.detectors.calibration import calibrate, choose_threshold
from safeflux.detectors.specs import open_detector
from safeflux.errors import ConfigError
from safeflux.reference.measure import draw, single_asks
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import vocabulary, with_article
from tests.helpers.zero_shot import save_clip


class Brightness(Detector):
    """Scores a gray picture by how bright it is."""

    def __init__(self):
        self.name, self.concepts, self.thresholds = "brightness", ("light", "dark"), same_threshold("12", 0.5)

    def __call__(self, images):
        light = np.array([np.asarray(image).mean() / 255 for image in images], dtype=np.float32)
        return np.stack([light, 1 - light], axis=1)


def gray(*values):
    return [Image.new("RGB", (4, 4), (value, value, value)) for value in values]


def test_a_threshold_lies_in_the_middle_of_the_gap():
    detector, seen = calibrate(Brightness(), {"light": gray(200, 220)}, gray(10, 60))
    assert detector.threshold_of("light") == pytest.approx((200 + 60) / 2 / 255)
    assert detector.threshold_of("dark") == 0.5  # of this nobody asked
    assert (seen.found["light"].hits, seen.false_alarms["light"].hits) == (2, 0)
    assert (detector.is_calibrated, Brightness().is_calibrated) == (True, False)


@pytest.mark.parametrize("seed", range(5))
def test_at_most_two_percent_of_neutral_pictures_are_false_alarms_where_scores_overlap(seed):
    rng = np.random.default_rng(seed)
    asked, neutral = (rng.normal(mean, 1, 500).astype(np.float32) for mean in (1.5, 0.0))
    threshold = choose_threshold(asked, neutral, 0.02)
    assert 0.01 < (neutral > threshold).mean() <= 0.02
    assert (asked > threshold).mean() > 0.15
    apart = choose_threshold(asked + 20, neutral, 0.02)
    assert ((neutral > apart).sum(), (asked + 20 > apart).mean()) == (0, 1)


def test_a_detector_that_sees_no_difference_finds_nothing_and_says_so():
    same = gray(10, 60, 200)
    detector, seen = calibrate(Brightness(), {"light": same}, same)
    assert seen.found["light"].hits == seen.false_alarms["light"].hits == 0
    assert not detector.found(same, ["light"]).any()
    assert "least light (0.0 %" in str(seen)


def test_the_judge_keeps_its_threshold_and_is_counted_on_real_pictures(tmp_path):
    words, rng = vocabulary(), np.random.default_rng(0)
    pipe, judge = load_pipeline(), open_detector("judge")
    asked = draw(pipe, [ask.prompt for ask in single_asks(words, [words["dagger"]], 8, rng)], 0)
    others = draw(pipe, [ask.prompt for ask in single_asks(words, words.neutral[:12], 1, rng)], 100)
    detector, seen = calibrate(judge, {"dagger": asked}, others)
    assert (detector.thresholds == 0.5).all()
    assert seen.found["dagger"].value > 0.8 > 0.2 > seen.false_alarms["dagger"].value
    assert seen.to_json()["dagger"]["threshold"] == 0.5
    words = {"dagger": ("a dagger",), "cat": ("a cat",), "tree": ("a tree",)}
    shipped, seen = calibrate(open_detector("zero-shot:emoji-clip", Wanted(words)), {"dagger": asked}, others)
    assert (seen.overall.value, seen.false_alarms["dagger"].hits) == (1, 0)  # a second opinion on the same pictures
    assert shipped.found(asked, ["dagger"]).all()
    bare = [Image.new("RGB", (64, 64), color) for _, color in vocabulary().backgrounds]
    every = {concept.name: (with_article(concept.words),) for concept in vocabulary().concepts}
    assert not shipped.found(bare, ["dagger"]).any()
    assert not open_detector("zero-shot:emoji-clip", Wanted(every)).found(bare, list(every)).any()

    clip = open_detector(f"zero-shot:{save_clip(tmp_path)}", Wanted({"dagger": ("a dagger",)}, neutral=("a cat",)))
    detector, seen = calibrate(clip, {"dagger": asked}, others)
    assert seen.false_alarms["dagger"].value <= 0.02
    assert detector.found(asked, ["dagger"]).sum() == seen.found["dagger"].hits


def test_pictures_of_both_sides_are_needed():
    for asked, neutral in (({}, gray(1)), ({"light": []}, gray(1)), ({"light": gray(1)}, [])):
        with pytest.raises(ConfigError, match="expected pictures of every concept and neutral ones"):
            calibrate(Brightness(), asked, neutral)
    with pytest.raises(ConfigError, match="'lihgt': the detector brightness has none of that name; did you mean"):
        calibrate(Brightness(), {"lihgt": gray(1)}, gray(1))
