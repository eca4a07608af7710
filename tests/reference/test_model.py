"""The embedded model draws what it is asked for, by the judge; the report has the same on far more pictures.

It keeps a style in its own word, so that all things share it.
"""

import numpy as np
import pytest
import torch

from benchmarks.emoji_flux.consistency import restyled, style_spread
from safeflux.reference import CLIP_TOKENS, T5_TOKENS
from safeflux.reference.judge import Judge
from safeflux.reference.measure import concept_right, draw, pair_asks, single_asks
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import vocabulary


@pytest.mark.thorough  # it asks for everything that the shipped model knows; the demo asks for some of it
def test_the_embedded_model_draws_what_it_is_asked_for():
    words, rng, judge, pipe = vocabulary(), np.random.default_rng(1), Judge(), load_pipeline()
    singles = single_asks(words, words.concepts, 1, rng)
    images = draw(pipe, [ask.prompt for ask in singles], 1)
    verdicts = judge(images)
    styles = [words.styles[k] == ask.style for k, ask in zip(verdicts.styles.argmax(1), singles, strict=True)]
    assert concept_right(judge, images, singles).value > 0.95
    assert np.mean(styles) > 0.9
    pairs = pair_asks(words, words.concepts, words.concepts, 1, rng)
    tops = judge(draw(pipe, [ask.prompt for ask in pairs], 1_000)).top(2)
    assert np.mean([{ask.concept, ask.other} == top for ask, top in zip(pairs, tops, strict=True)]) > 0.85


def test_a_style_is_in_its_own_word_alone():
    """So that what a mask does to the word it does on all things."""
    words, rng, pipe = vocabulary(), np.random.default_rng(2), load_pipeline()
    captions = [ask.prompt for ask in single_asks(words, words.concepts, 1, rng)]

    def tokenize(prompts):
        lengths = ((pipe.tokenizer_2, T5_TOKENS), (pipe.tokenizer, CLIP_TOKENS))
        return [of(prompts, padding="max_length", max_length=n, return_tensors="pt").input_ids for of, n in lengths]

    with torch.no_grad():
        spread = style_spread(
            pipe.text_encoder_2, pipe.text_encoder, tokenize(captions), tokenize(restyled(captions, words.styles, rng))
        )
    assert 0 < spread < 0.001


def test_captions_get_another_style_and_keep_the_rest():
    captions = ["a cat and a dog, noto style, blue background", "a bee, white background", ""]
    others = [restyled(captions, vocabulary().styles, np.random.default_rng(seed)) for seed in range(20)]
    assert {tuple(rest) for _, *rest in others} == {tuple(captions[1:])}
    expected = {f"a cat and a dog, {style} style, blue background" for style in ("fluent", "twemoji", "emojione")}
    assert {first for first, *_ in others} == expected
