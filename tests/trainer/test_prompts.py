"""Prompts: pairs differ in the concept alone, and what measures a mask never trains it."""

import numpy as np
import pytest
from safeflux.trainer.config import PromptConfig, make_config
from safeflux.trainer.prompts import draw_erase, draw_neutral, embedded_prompts, is_held_out

from safeflux.errors import ConfigError
from safeflux.reference.vocabulary import vocabulary, with_article


@pytest.fixture(scope="module")
def weapons() -> PromptConfig:
    return embedded_prompts("weapons")


def test_an_anchor_is_its_prompt_without_the_concept(weapons):
    for pair in draw_erase(weapons, np.random.default_rng(0), 200):
        words = [w for w in weapons.concepts[pair.concept] if w in pair.prompt]
        assert any(pair.prompt.replace(word, weapons.anchor) == pair.anchor for word in words)
        assert (pair.other is None) == (" and " not in pair.anchor)
        assert pair.other is None or pair.other in pair.anchor


def test_every_concept_gets_its_turn(weapons):
    drawn = draw_erase(weapons, np.random.default_rng(1), len(weapons.concepts))
    assert {pair.concept for pair in drawn} == set(weapons.concepts)


def test_training_never_says_a_held_out_word_or_shows_a_held_out_concept(weapons):
    rng = np.random.default_rng(2)
    text = " | ".join([p.prompt for p in draw_erase(weapons, rng, 500)] + draw_neutral(weapons, rng, 1000))
    words = vocabulary()
    held_out = [w for c in words.categories["weapons"] for w in c.held_out]
    held_out += [c.words for c in words.neutral if is_held_out(c)]
    assert len(held_out) > 30
    assert not [w for w in held_out if f"{with_article(w)}," in text or f"{with_article(w)} and" in text]


def test_neutral_prompts_hold_no_concept_of_any_category(weapons):
    words = vocabulary()
    of_category = [with_article(w) for cs in words.categories.values() for c in cs for w in (c.words, *c.synonyms)]
    text = draw_neutral(weapons, np.random.default_rng(3), 1000)
    assert not [(t, w) for t in text for w in of_category if f"{w}," in t or f"{w} and" in t]


def test_the_same_generator_draws_the_same_prompts(weapons):
    assert draw_erase(weapons, np.random.default_rng(4), 9) == draw_erase(weapons, np.random.default_rng(4), 9)


def test_an_unknown_category_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'weapon'.*weapons, alcohol"):
        embedded_prompts("weapon")


def test_a_configuration_tells_every_wrong_key(weapons):
    data = {"category": "weapons", "prompts": weapons, "batch": 0, "stepps": 4, "kinds": ["attn"]}
    with pytest.raises(ConfigError) as caught:
        make_config(data, "mine.yaml")
    lines = str(caught.value).splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == ["batch", "kinds.0", "stepps"]
    assert all(line.startswith("mine.yaml: ") for line in lines)
