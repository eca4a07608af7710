"""Prompts: pairs differ in the concept alone, and what measures a mask never trains it."""

import re
from pathlib import Path

import numpy as np
import pytest
from safeflux.trainer.asked.config import TrainConfig, make_config
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.asked.prompts import PromptSource
from safeflux.trainer.asked.run_file import load_config

from safeflux.errors import ConfigError
from safeflux.reference.vocabulary import held_out_concepts, vocabulary, with_article


def options(*categories: str, **changes: object) -> TrainConfig:
    return make_config({**embedded_options(categories), **changes}, "test")


@pytest.fixture(scope="module")
def weapons() -> TrainConfig:
    return options("weapons")


def erased(config: TrainConfig, count: int, seed: int = 0) -> list:
    return PromptSource(config).erase(next(iter(config.categories)), np.random.default_rng(seed), count)


def preserved(config: TrainConfig, count: int, seed: int = 0) -> list:
    return PromptSource(config).preserve(np.random.default_rng(seed), count)


def test_a_named_anchor_takes_the_concepts_place(weapons):
    for pair in erased(weapons, 200):
        words = [w for w in weapons.categories["weapons"].concepts[pair.concept] if w in pair.prompt]
        assert any(pair.prompt.replace(word, "nothing") == pair.anchor for word in words)


@pytest.mark.parametrize(
    ("anchor", "expected"),
    [
        ("null", r""),
        ("dropped", r"(an? [a-z -]+, )?[a-z]+ style, [a-z]+ background"),
        ("a pebble", r"(a pebble|a pebble and an? .+|an? .+ and a pebble), [a-z]+ style, [a-z]+ background"),
    ],
)
def test_the_anchor_is_what_the_configuration_says(weapons, anchor, expected):
    data = weapons.model_dump(by_alias=True)
    data["categories"]["weapons"]["anchor"] = anchor
    for pair in erased(make_config(data, "test"), 100):
        assert re.fullmatch(expected, pair.anchor), pair


def test_a_concept_may_have_an_anchor_of_its_own(weapons):
    data = weapons.model_dump(by_alias=True)
    data["categories"]["weapons"]["anchors"] = {"bomb": "a pebble"}
    for pair in erased(make_config(data, "test"), 50):
        assert ("a pebble" in pair.anchor) == (pair.concept == "bomb")


def test_a_style_is_erased_from_pictures_of_all_things_that_training_knows():
    config = options("fluent-style")
    others = [words for category in config.prompts.others.values() for words in category.concepts.values()]
    things = [*config.prompts.neutral, *(word for words in others for word in words)]
    pairs = erased(config, len(things))
    shown = " | ".join(pair.prompt for pair in pairs)
    assert all(re.search(rf"\b{re.escape(thing)}( and|,)", shown) for thing in things)
    assert {"horror"} in [pair.categories for pair in pairs]
    for pair in pairs:
        assert pair.prompt.replace("fluent style", "noto style") == pair.anchor != pair.prompt
    assert {style for pair in preserved(config, 300) for style in re.findall(r"(\w+) style", pair.prompt)} == set(
        vocabulary().styles
    )


def test_a_concept_is_erased_in_every_style_and_a_style_that_a_mask_erases_is_noted(weapons):
    pairs = erased(weapons, 400)
    assert {style for pair in pairs for style in re.findall(r"(\w+) style", pair.prompt)} == set(vocabulary().styles)
    assert all(("fluent-style" in pair.categories) == ("fluent style" in pair.prompt) for pair in pairs)


def test_under_two_masks_the_anchor_replaces_what_both_erase():
    """Else a thing in an erased style would be trained under neither: its plain anchor still has the style."""
    config = options("weapons", "fluent-style")
    pairs = PromptSource(config, beside=list(config.categories)).erase("weapons", np.random.default_rng(0), 400)
    both = [pair for pair in pairs if pair.within]
    assert 30 < len(both) < 70  # an eighth: half of those in one of four styles
    for pair in both:
        assert pair.within == {"fluent-style"}
        assert not pair.categories
        assert "fluent style" in pair.prompt
        assert re.search(r"nothing.*noto style", pair.anchor)
    assert any(pair.categories == {"fluent-style"} and "fluent style" in pair.anchor for pair in pairs)


def test_every_concept_gets_its_turn(weapons):
    drawn = erased(weapons, len(weapons.categories["weapons"].concepts), seed=1)
    assert {pair.concept for pair in drawn} == set(weapons.categories["weapons"].concepts)


@pytest.mark.parametrize("category", ["weapons", "fluent-style"])
def test_training_never_says_a_held_out_word_or_shows_a_held_out_concept(category):
    config, words = options(category, "alcohol"), vocabulary()
    text = " | ".join(pair.prompt for pair in erased(config, 500) + preserved(config, 2000))
    held_out = [w for c in words.concepts for w in c.held_out]
    held_out += [c.words for c in held_out_concepts()]
    assert len(held_out) > 30
    assert not [w for w in held_out if re.search(rf"\b{re.escape(with_article(w))}( and|,)", text)]


def test_a_prompt_to_preserve_names_the_categories_of_its_things(weapons):
    """Trained here or not: where their masks are on, they are not to be preserved."""
    words, pairs = vocabulary(), preserved(weapons, 1000)
    for name, concepts in words.categories.items():
        said = re.compile(
            "|".join(
                re.escape(f"{with_article(w)}{end}")
                for c in concepts
                for w in (c.words, *c.synonyms)
                for end in (",", " and")
            )
        )
        assert any(name in pair.categories for pair in pairs)
        assert all((name in pair.categories) == bool(said.search(pair.prompt)) for pair in pairs)
    assert all(("fluent-style" in pair.categories) == ("fluent style" in pair.prompt) for pair in pairs)


def test_the_same_generator_draws_the_same_prompts(weapons):
    assert erased(weapons, 9, seed=4) == erased(weapons, 9, seed=4)


def test_an_unknown_category_is_named_with_the_nearest_or_the_known_ones():
    with pytest.raises(ConfigError, match=r"'weapon'.*did you mean 'weapons'\?$"):
        embedded_options(["weapon"])
    with pytest.raises(ConfigError, match=r"'sport'.*weapons, alcohol"):
        embedded_options(["sport"])


def test_the_configuration_for_the_big_model_is_one():
    config = load_config(Path(__file__).parents[2] / "docs" / "flux1-dev.yaml")
    for pair in erased(config, 50):
        assert pair.anchor in {"a photo", "a watercolour"} or pair.anchor.startswith(("a photo ", "a watercolour "))
        assert not any(
            word in pair.anchor for words in config.categories["weapons"].concepts.values() for word in words
        )


@pytest.mark.parametrize(
    ("kind", "slot", "said"),
    [("object", "thing", "a photo of X"), ("identity", "thing", "a portrait of X"), ("style", "style", "style of X")],
)
def test_without_templates_those_of_the_kind_are_used(kind, slot, said):
    category = {"concepts": {"x": ["X"]}, "kind": kind, "slot": slot}
    prompts = {"neutral": ["a cat", "a dog"], "slots": {"style": ["Monet", "X"]}}
    config = make_config({"categories": {"mine": category}, "prompts": prompts}, "test")
    pairs = erased(config, 100)
    assert any(said in pair.prompt for pair in pairs)
    assert all("X" in pair.prompt and "X" not in pair.anchor and "{" not in pair.prompt for pair in pairs)
    assert any(" and " in pair.prompt for pair in pairs)
    assert {pair.anchor.split()[0] for pair in pairs} <= {"a", "an"}
    kept = preserved(config, 100)
    assert all(pair.categories or "cat" in pair.prompt or "dog" in pair.prompt for pair in kept)


@pytest.mark.parametrize(
    ("single", "pair", "slot", "message"),
    [
        (["a photo of {thng}"], [], "thing", r"'a photo of {thng}': no slot fills {thng}; there are place, thing"),
        (["a photo {place}"], [], "thing", r"expected {thing} in it"),
        (["a photo of {thing}"], [], "place", r"expected {place} in it"),
        (["{thing"], [], "thing", r"'{thing': expected '}'"),
        (["{thing}"], ["{first} and {thing}"], "thing", r"no slot fills {thing}; there are first, place, second"),
        ([], ["{first} and {second}"], "thing", r"pair: expected single templates too"),
    ],
)
def test_a_template_that_cannot_be_filled_is_named(single, pair, slot, message):
    prompts = {"neutral": ["a cat"], "single": single, "pair": pair, "slots": {"place": ["here"]}}
    category = {"concepts": {"x": ["X"]}, "slot": slot}
    with pytest.raises(ConfigError, match=message):
        make_config({"categories": {"mine": category}, "prompts": prompts}, "test")


def test_a_configuration_tells_every_wrong_key():
    data = {**embedded_options(["weapons"]), "batch": 0, "stepps": 4, "kinds": ["attn"]}
    with pytest.raises(ConfigError) as caught:
        make_config(data, "mine.yaml")
    lines = str(caught.value).splitlines()
    unknown = "unknown key 'stepps'; did you mean 'steps'?"
    assert sorted(line.split(": ")[1] for line in lines) == ["batch", "kinds.0", unknown]
    assert all(line.startswith("mine.yaml: ") for line in lines)
