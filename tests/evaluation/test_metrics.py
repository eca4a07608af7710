"""The arithmetic of the figures, against answers that are known from elsewhere."""

import numpy as np
import pytest
from PIL import Image

from safeflux.evaluation.metrics import Paired, frechet_distance, harmonic, similarities
from safeflux.rates import Mean, Rate


def sample(mean, covariance, count, seed):
    """A sample whose own mean and covariance are exactly those."""
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(np.array(covariance)).T + mean


def test_frechet_distance_of_known_gaussians():
    a, b = [[4.0, 1.0], [1.0, 3.0]], [[2.0, -1.0], [-1.0, 5.0]]  # do not commute
    product = np.array(a) @ np.array(b)
    # The trace of a 2 x 2 matrix's root, by its trace and determinant.
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = 3.0**2 + 4.0**2 + np.trace(a) + np.trace(b) - 2 * root
    got = frechet_distance(sample([0.0, 0.0], a, 50, 0), sample([3.0, 4.0], b, 70, 1))
    assert got == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(sample([3.0, 4.0], b, 70, 1), sample([0.0, 0.0], a, 50, 0)) == pytest.approx(got)


def test_frechet_distance_of_a_shift_is_its_square_even_with_fewer_pictures_than_features():
    x = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + 0.5) == pytest.approx(64 * 0.25, rel=1e-5)
    assert frechet_distance(x, 2 * x) > 1


def test_similarity_of_flat_pictures_is_known():
    a, b = (Image.new("RGB", (64, 64), (level,) * 3) for level in (100, 150))
    constant = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + constant) / (100**2 + 150**2 + constant)
    assert similarities([a, a], [a, b]) == pytest.approx([1, expected])


def test_similarity_falls_with_noise():
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1)))
    noisy = [np.clip(pixels + rng.normal(0, spread, pixels.shape), 0, 255) for spread in (5, 50)]
    base, little, much = (Image.fromarray(values.astype(np.uint8)) for values in (pixels, *noisy))
    close, far = similarities([base, base], [little, much])
    assert 1 > close > far > 0


def test_harmonic_mean_is_that_of_mace():
    celebrities = harmonic(Rate(431, 10_000), Rate(8456, 10_000), None)  # arXiv 2403.06135: 89.78
    assert celebrities.value == pytest.approx(0.8978, abs=5e-5)
    three = harmonic(Rate(1, 10), Rate(8, 10), Rate(4, 10))
    assert three.value == pytest.approx(3 / (1 / 0.9 + 1 / 0.8 + 1 / 0.6))
    assert len(three.terms) == 3
    assert harmonic(Rate(10, 10), Rate(10, 10), None).value == 0


def test_harmonic_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, n, inside = 2 / (1 / 0.95 + 1 / 0.9), 200, 0
    for _ in range(200):
        low, high = harmonic(Rate(rng.binomial(n, 0.05), n), Rate(rng.binomial(n, 0.9), n), None).interval
        inside += low <= truth <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_pairs_count_what_changed_and_add_up():
    base, masked = (np.array([bool(int(c)) for c in text]) for text in ("1111100000", "1100010000"))
    pair = Paired.of(base, masked)
    assert (pair.base, pair.masked, pair.lost, pair.gained) == (Rate(5, 10), Rate(3, 10), 3, 1)
    both = pair + Paired(Rate(1, 2), Rate(2, 2), 0, 1)
    assert (both.base, both.masked, both.lost, both.gained) == (Rate(6, 12), Rate(5, 12), 3, 2)
    assert pair.to_json()["change"] == pytest.approx(-0.2)


def test_the_interval_of_a_change_holds_the_truth_as_often_as_it_says():
    rng, n, inside = np.random.default_rng(0), 150, 0
    for _ in range(400):
        base = rng.random(n) < 0.9
        masked = np.where(rng.random(n) < 0.1, ~base, base)
        _, low, high = Paired.of(base, masked).change
        inside += low <= 0.1 * 0.1 - 0.9 * 0.1 <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_the_mean_narrows_with_the_root_of_n():
    values = np.random.default_rng(0).normal(3, 2, 4000)
    few, many = Mean.of(values[:40]), Mean.of(values)
    assert many.interval[0] < 3 < many.interval[1]
    widths = [mean.interval[1] - mean.interval[0] for mean in (few, many)]
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.3)
