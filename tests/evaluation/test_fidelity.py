"""What a person sees: contrast that is left, and which concepts are told by name."""

import numpy as np
import pytest
from PIL import Image

from safeflux.evaluation.fidelity import Fidelity, contrasts_kept
from safeflux.masks.nearness import WORST


def square(ink, ground=(255, 255, 255)) -> Image.Image:
    """A square in the middle of a plain picture."""
    image = Image.new("RGB", (16, 16), ground)
    image.paste(ink, (4, 4, 12, 12))
    return image


BLACK, GRAY = (0, 0, 0), (153, 153, 153)


def measure(concepts, base, masked) -> Fidelity:
    return Fidelity.of(concepts, base, masked, (base, base))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_the_contrast_is_that_to_the_ground_of_each_picture(mode):
    base, faded = square(BLACK).convert(mode), square(GRAY).convert(mode)
    on_gray = square((102, 102, 102), ground=GRAY).convert(mode)  # as far from its ground as 51 of 255
    assert contrasts_kept([base, base, base], [base, faded, on_gray]) == pytest.approx([1, 0.4, 0.2])


def test_more_contrast_than_before_makes_up_for_none_lost():
    assert contrasts_kept([square(GRAY)], [square(BLACK)]) == [1]


def test_a_bare_picture_has_no_contrast_to_lose():
    bare = square((255, 255, 255))
    assert np.isnan(contrasts_kept([bare], [square(BLACK)])).all()
    found = measure(["a", "a", "b"], [bare, square(BLACK), square(BLACK)], [square(BLACK)] * 3)
    assert found.contrast.mean.n == 2
    assert {one.concept: one.n for one in found.worst} == {"a": 1, "b": 1}
    nothing = measure(["a", "a"], [bare, bare], [bare, bare])
    assert (nothing.contrast, nothing.worst, nothing.picture()) == (None, (), None)
    assert nothing.to_json()["contrast"] is None


def test_the_worst_concepts_are_told_with_the_pair_that_lost_most():
    base = [square(BLACK)] * 24
    inks = [(k, k, k) for k in range(0, 240, 10)]
    masked = [square(ink) for ink in inks]
    found = measure([f"thing {k // 2}" for k in range(24)], base, masked)
    assert [one.concept for one in found.worst] == [f"thing {k}" for k in range(11, 11 - WORST, -1)]
    assert found.pairs[0] == (base[22], masked[23])
    assert found.worst[0].contrast == pytest.approx((1 - 225 / 255), abs=1e-6)
    sheet = found.picture()
    assert sheet.size == (8 + WORST * 136, 300)


def test_similarity_stands_beside_its_scale():
    rng = np.random.default_rng(0)
    one, other = ([Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(3)] for _ in "ab")
    found = Fidelity.of(["x"] * 3, one, one, (one, other))
    assert found.ssim.mean.value == 1
    assert abs(found.two_noises.value) < 0.3
    assert set(found.facts) == {
        "structural similarity to the base model's pictures",
        "the same of two noises of the base model",
        "contrast left inside the thing",
        "least of it",
    }


def test_the_distance_is_of_detectors_that_have_features_beside_that_of_two_noises():
    base, masked, other = [square(BLACK)] * 2, [square(GRAY)] * 2, [square(BLACK, ground=(0, 99, 0))] * 2

    def colours(images):
        return np.stack([np.asarray(image, dtype=np.float32).mean((0, 1)) + np.float32([1, 0, 0]) for image in images])

    found = Fidelity.of(["x"] * 2, base, masked, (base, other), {"eye": colours, "blind": lambda images: None})
    assert list(found.distances) == ["eye"]
    assert 0 < found.distances["eye"].mean.value < found.distances["eye"].two_noises.value < 1
    assert "distance to them in the features of eye" in found.facts
    assert "distances" not in Fidelity.of(["x"] * 2, base, masked).to_json()
