"""The embedded model draws what it is asked for, by the judge; the report has the same on far more pictures."""

import numpy as np
import pytest

from safeflux.reference.judge import Judge
from safeflux.reference.measure import concept_right, draw, pair_asks, single_asks
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import vocabulary


@pytest.mark.slow
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
