"""What the base model drew once: noises, changes, and which pairs are dropped."""

import pytest
import torch
from safeflux.trainer.config import make_config
from safeflux.trainer.embedded import embedded_options
from safeflux.trainer.prompts import Pair, PromptSource
from safeflux.trainer.references import LEAST_CHANGE, References, border_tokens, encode_once, make_references
from safeflux.trainer.rollout import Sampler, sampler_of

from safeflux.reference.model import load_pipeline


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def sampler(pipe) -> Sampler:
    return sampler_of(pipe, steps=2, height=64, width=64)


@pytest.fixture(scope="module")
def references(pipe, sampler) -> References:
    import numpy as np

    source = PromptSource(make_config(embedded_options(["weapons"]), "test"))
    pairs = source.erase("weapons", np.random.default_rng(0), 10)
    pairs += [Pair("a cat, noto style", "a cat, noto style"), Pair("a dog, noto style", "a dog, twemoji style")]
    encoded = encode_once(pipe, [text for pair in pairs for text in (pair.prompt, pair.anchor)], 20)
    return make_references(pipe.transformer, sampler, pairs, encoded, seed=1, batch=5)


def test_every_prompt_is_encoded_once_and_as_the_pipeline_does(pipe, references):
    prompts = [pair.prompt for pair in references.pairs[:3]]
    condition = references.condition([0, 1, 2])
    tokens, pooled, _ = pipe.encode_prompt(prompt=prompts, prompt_2=None, max_sequence_length=20)
    assert torch.allclose(condition.tokens, tokens, atol=1e-5)
    assert torch.allclose(condition.pooled, pooled, atol=1e-5)
    assert len(references.encoded.row) == len(references.encoded.condition.tokens)


def test_the_change_is_the_distance_of_both_pictures_and_has_a_least_value(references):
    least = references.change.min()
    assert references.change[10] == least > 0  # the same prompt twice changes nothing
    assert (references.change[:10] > least).sum() > 5
    assert least == pytest.approx(LEAST_CHANGE * float(references.change.mean()), rel=0.3)


def test_the_border_of_sixteen_tokens_is_all_but_the_middle_four(sampler):
    assert border_tokens(sampler).view(4, 4).int().tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]


def test_pairs_whose_border_changes_most_are_dropped(references):
    left = references.without_border_changes(0.25)
    gone = [k for k, pair in enumerate(references.pairs) if pair not in left.pairs]
    worst = (references.border / references.change).argsort(descending=True)[:3]
    assert sorted(gone) == sorted(worst.tolist())
    kept = [k for k in range(12) if k not in gone]
    assert torch.equal(left.noise, references.noise[kept])
    assert torch.equal(left.target, references.target[kept])
