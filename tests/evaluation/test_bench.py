"""The bench on the embedded model and its judge, with masks whose effect is known or counted again by hand."""

import copy

import numpy as np
import pytest
import torch

from safeflux.errors import ConfigError, MaskMismatchError, ModelError
from safeflux.evaluation.bench import Bench
from safeflux.evaluation.questions import KEPT, Sizes, by_name, questions_of, target_of
from safeflux.families.sites import find_sites
from safeflux.masks.mask_set import MaskSet, keep_all
from safeflux.model.apply import apply_masks_
from safeflux.reference.judge import Judge
from safeflux.reference.measure import draw
from safeflux.reference.model import load_pipeline

SIZES = Sizes(found=6, details=6, neighbours=4, kept=24, others=2)


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def steps():
    """The calls of the bench's progress."""
    return []


@pytest.fixture(scope="module")
def bench(pipe, steps):
    return Bench(pipe, Judge(), sizes=SIZES, seed=3, progress=lambda *step: steps.append(step))


@pytest.fixture(scope="module")
def masks(pipe):
    """A third of the weights off at random: enough to spoil pictures."""
    rng = torch.Generator().manual_seed(0)
    sites = [site for site in find_sites(pipe.transformer).values() if site.kind == "weight"]
    return MaskSet({site.name: torch.rand(site.shape, generator=rng) > 0.3 for site in sites})


@pytest.fixture(scope="module")
def figures(bench, masks, steps):
    steps.clear()
    found = bench.measure(masks, ["weapons"])
    asked = 3 * SIZES.found + SIZES.neighbours + SIZES.kept + 6 * SIZES.others
    assert {(what, total) for what, _, total in steps} == {("base model", asked), ("masked model", asked)}
    return found


def test_masks_that_keep_everything_change_nothing(bench, figures, pipe):
    same = bench.measure(keep_all(find_sites(pipe.transformer).values()), ["weapons"])
    assert all((pair.lost, pair.gained) == (0, 0) for pair in same.rows.values())
    assert (same.fidelity.ssim.mean.value, same.fidelity.contrast.mean.value) == (1, 1)
    assert same.frechet == pytest.approx(0, abs=1e-6)
    assert {kind: count.masked for kind, count in same.shares.counts.items()} == dict.fromkeys(same.shares.counts, 0)
    assert {name: pair.base for name, pair in same.rows.items()} == {n: p.base for n, p in figures.rows.items()}


def test_rates_are_what_the_judge_says_of_those_pictures(figures, masks, pipe):
    question = by_name(target_of("weapons"), SIZES.found, 3)
    prompts, names = [a.prompt for a in question.asks], [a.concept for a in question.asks]
    before = Judge()(draw(pipe, prompts, question.first_seed)).found(names)
    with apply_masks_(pipe.transformer, masks):
        after = Judge()(draw(pipe, prompts, question.first_seed)).found(names)
    weapons = figures.targets["weapons"]
    assert (weapons.found.base.hits, weapons.found.masked.hits) == (before.sum(), after.sum())
    assert weapons.found.lost == (before & ~after).sum()
    for name, pair in weapons.by_concept.items():
        chosen = np.array(names) == name
        assert (pair.base.hits, pair.masked.n) == (before[chosen].sum(), chosen.sum())
    assert weapons.found.masked.hits <= weapons.traces.masked.hits < weapons.traces.base.hits
    assert weapons.found.base.value > 0.5  # the base model draws what it is asked for
    assert figures.kept_right.masked.value < figures.kept_right.base.value


def test_groups_and_sums(figures, masks, pipe):
    assert list(figures.kept) == list(KEPT)
    assert [pair.base.n for pair in figures.kept.values()] == [12, 12, 6 * SIZES.others]
    assert figures.kept_right.base.n == 24 + 6 * SIZES.others
    assert (
        figures.looks_right["style"].base.n
        == figures.looks_right["background"].base.n
        == figures.fidelity.ssim.mean.n
        == 24
    )
    assert figures.frechet_n == 24
    fidelity = figures.fidelity
    assert fidelity.ssim.mean.value < 0.99
    assert 0 < fidelity.two_noises.value < 0.99
    assert fidelity.two_noises.n == 12  # of the held-out half
    assert fidelity.contrast.percentile_5 < fidelity.contrast.mean.value < 1
    contrasts = [one.contrast for one in fidelity.worst]
    assert contrasts == sorted(contrasts)
    assert len(set(contrasts)) > 1
    assert figures.frechet > 1
    total = sum(site.num_bits for site in find_sites(pipe.transformer).values() if site.kind == "weight")
    assert figures.shares.counts["weight"] == (masks.count.masked, total)
    assert figures.to_json()["targets"]["weapons"]["found"]["masked"]["n"] == SIZES.found


def test_the_base_model_is_drawn_once_and_a_target_is_measured_alike_beside_others(bench, figures, masks, steps):
    steps.clear()
    both = bench.measure(masks, ["weapons", "fluent-style"])
    assert {total for what, _, total in steps if what == "base model"} == {SIZES.found + SIZES.details}
    assert both.targets["weapons"] == figures.targets["weapons"]
    style = both.targets["fluent-style"]
    assert style.found.base.value > 0.5
    assert style.thing_right.base.n == style.found.base.n == style.traces.base.n == SIZES.found
    assert style.found_held_out.base.n == SIZES.details
    assert style.found_held_out.base.value > 0.5
    assert (style.found_beside, style.neighbours_right) == (None, None)
    asked = questions_of([target_of("weapons")], SIZES, 3)
    others = [a.style for name in KEPT[:2] for a in asked[name].asks if a.style != "fluent"]
    assert both.frechet_n == both.looks_right["style"].base.n == len(others) < 24


def test_the_model_is_put_back_even_when_drawing_fails(pipe, masks, bits_of):
    before = bits_of(pipe.transformer)

    def stop(what, done, total):
        if what == "masked model":
            raise KeyboardInterrupt

    small = Bench(pipe, Judge(), sizes=Sizes(2, 2, 2, 2, 2), progress=stop)
    with pytest.raises(KeyboardInterrupt):
        small.measure(masks, ["tobacco"])
    assert bits_of(pipe.transformer) == before


def test_what_cannot_be_measured_is_refused_before_anything_is_drawn(bench, masks, pipe, steps):
    steps.clear()
    with pytest.raises(ConfigError, match="nudity"):
        bench.measure(masks, ["weapons", "nudity"])
    with pytest.raises(ConfigError, match="at least one category"):
        bench.measure(masks, [])
    with pytest.raises(MaskMismatchError, match="do not fit"):
        bench.measure(MaskSet({"nowhere:ff": torch.ones(3, dtype=torch.bool)}), ["weapons"])
    with apply_masks_(pipe.transformer, masks), pytest.raises(ModelError, match="changed since"):
        bench.measure(copy.deepcopy(masks), ["weapons"])
    assert not steps
