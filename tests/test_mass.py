"""Masks of many concepts in benchmarks/mass: who is asked for what, and subsets that are measured once."""

from pathlib import Path

import pytest

from benchmarks.mass.learning import BESIDE, GROUP, TOGETHER, configured
from benchmarks.mass.measuring import Measuring, Report, by_size, pictures_of, pooled_harmonic, sizes_for, subsets_of
from benchmarks.mass.page import write_page
from benchmarks.mass.world import World
from safeflux.errors import ConfigError
from safeflux.evaluation.attacks.victim import random_like
from safeflux.evaluation.questions import KEPT, questions_of
from safeflux.masks.encoding import digest
from safeflux.masks.file import load_masks
from safeflux.masks.mask_set import compose
from safeflux.packs.emoji import words_of
from safeflux.reference import NAME
from safeflux.reference.vocabulary import held_out_concepts, with_article
from tests.helpers.runs import MASKS

GROWN = Path("benchmarks/emoji_flux/grown/vocabulary.yaml")


def world_of(count, path=None):
    return World.of(NAME, path, None, count)


@pytest.mark.parametrize(("count", "path"), [(25, None), (100, GROWN)])
def test_training_sees_no_word_that_is_held_out(count, path):
    world = world_of(count, path)
    some = world.names[3:9]
    config = configured(world, some, GROUP, (8, 8))
    assert set(config.categories) == set(some)
    assert set(config.prompts.others) == set(world.names) - set(some)
    every = {**config.categories, **config.prompts.others}
    erased = {word for category in every.values() for words in category.concepts.values() for word in words}
    preserved = set(config.prompts.neutral)
    assert not erased & preserved
    held_out = {
        with_article(word) for target in world.words.targets.values() for c in target.concepts for word in c.held_out
    }
    assert not (held_out | set(words_of(held_out_concepts(world.words)))) & preserved
    assert not held_out & erased
    styles = [target for target in world.words.targets.values() if target.style]
    assert len(world.names) == count
    assert len(styles) == count // 50


def test_a_vocabulary_that_leaves_too_little_alone_is_an_error():
    with pytest.raises(ConfigError, match=r"at least 144 concepts for 120 masks, got one of 124"):
        world_of(120)


def test_all_masks_are_repaired_within_the_bits_of_their_groups():
    world = world_of(10)
    made = [MASKS / "weapons.safetensors"]
    config = configured(world, world.names, TOGETHER, (8, 8), made)
    assert config.many.within_initial
    assert config.initial == tuple(made)


def test_a_group_learns_again_beside_the_masks_of_the_others():
    world = world_of(10)
    given = [MASKS / f"{name}.safetensors" for name in ("weapons", "alcohol")]
    config = configured(world, world.names[:5], BESIDE, (8, 8), given[:1], given[1:])
    assert (config.initial, config.together_with) == (tuple(given[:1]), tuple(given[1:]))
    assert not config.many.within_initial


def test_questions_ask_for_what_is_erased_and_for_what_is_not():
    world = world_of(25)
    erased = [world.words.targets[name] for name in world.names[:5]]
    asked = questions_of(erased, sizes_for(5, 25, 20), 0, world.words)
    things = {target.name for target in erased}
    assert {ask.concept for name in things for ask in asked[f"{name}/by name"].asks} == things
    assert {ask.concept for ask in asked[KEPT[0]].asks} <= {c.name for c in held_out_concepts(world.words)}
    others = {name.partition("/")[0] for name in asked if name not in KEPT} - things
    assert others == set(world.names[5:])


def test_subsets_are_all_of_one_and_different_random_ones_of_each_other_size():
    names = [f"n{k}" for k in range(100)]
    found = subsets_of(names, [1, 5, 50, 100, 200], 20)
    assert [len(some) for some in found] == [1] * 100 + [5] * 20 + [50] * 20 + [100]
    assert len(set(found)) == len(found)
    assert found == subsets_of(names, [1, 5, 50, 100, 200], 20)
    assert pictures_of(found, 24, 20) == {1: 24, 5: 24, 50: 24, 100: 480}


@pytest.mark.slow  # it draws some hundred pictures
def test_a_subset_is_the_and_of_its_masks_and_is_measured_once(tmp_path):
    world, (masks, _) = world_of(3), load_masks(MASKS / "tobacco.safetensors")
    every = {name: random_like(masks, k) for k, name in enumerate(world.names)}
    report = Report(tmp_path / "mass.json")
    measuring = Measuring(world, every, report, {1: 2, 3: 2}, lambda line: None)
    measuring.measure(world.names[:1])
    measuring.measure(world.names)
    measuring.measure(world.names, is_random=True)
    kept = Report(tmp_path / "mass.json")
    rows = kept.found["measured"]
    assert rows[" + ".join(world.names)]["masks"] == digest(compose(*every.values()))
    again = Measuring(world, every, kept, {1: 2, 3: 2}, lambda line: pytest.fail(line))
    again.measure(world.names)
    again.measure(world.names, is_random=True)
    assert list(by_size(rows)) == [1, 3]
    assert 0 <= pooled_harmonic(list(rows.values()), "base").value <= 1
    costs = {"learning": {"a_concept": {"seconds": 1, "cpu_seconds": 2}, "peak_mib": 3}, "milliseconds": {"compose": 4}}
    kept.add("costs", {**costs, "bytes": {"mean": 5, "most": 6}, "bits_off": {"mean": 7, "together": 8}})
    write_page(kept.found, tmp_path)
    text = (tmp_path / "mass.md").read_text()
    assert "| 1 | 1 |" in text
    assert "compose, all masks: 4.0 ms" in text
    assert (tmp_path / "curve.png").stat().st_size > 1000
