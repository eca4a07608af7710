"""What the base model drew once: noises, changes, and which pairs are dropped."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from safeflux.trainer.asked.config import TrajectoryConfig, make_config
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.asked.prompts import Pair, PromptSource
from safeflux.trainer.objective.losses import distance
from safeflux.trainer.objective.references import (
    LEAST_CHANGE,
    References,
    encode_once,
    make_references,
    read_image,
)
from safeflux.trainer.sampling.precision import fast_math
from safeflux.trainer.sampling.rollout import Sampler, encode, rollout, sampler_of
from safeflux.trainer.sampling.trajectory import steered

from safeflux.errors import ConfigError
from safeflux.reference.model import load_pipeline


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def sampler(pipe) -> Sampler:
    return sampler_of(pipe, steps=2, height=64, width=64)


@pytest.fixture(scope="module")
def references(pipe, sampler) -> References:
    source = PromptSource(make_config(embedded_options(["weapons"]), "test"))
    pairs = source.erase("weapons", np.random.default_rng(0), 10)
    pairs += [Pair("a cat, noto style", "a cat, noto style"), Pair("a dog, noto style", "a dog, twemoji style")]
    encoded = encode_once(pipe, pairs, make_config(embedded_options(["weapons"]), "test"))
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


def test_a_steered_target_ends_where_its_settings_say(pipe, sampler):
    """Held for all steps it is the prompt's picture, held for none and not turned the anchor's, turned it is beyond."""
    noise = sampler.noise(3, 4)
    asked, anchor = (encode(pipe, [text] * 3, 20) for text in ("a dagger, noto style", "a cat, noto style"))

    def target(hold: int, reversal: float) -> torch.Tensor:
        config = TrajectoryConfig(hold_steps=hold, reversal=reversal)
        with torch.no_grad():
            return steered(pipe.transformer, sampler, noise, asked, anchor, config)

    with torch.no_grad():
        prompt, other = (rollout(pipe.transformer, sampler, noise, c) for c in (asked, anchor))
    assert torch.allclose(target(2, 1.0), prompt, atol=1e-5)
    assert torch.allclose(target(0, 0.0), other, atol=1e-5)
    held, turned = target(1, 0.0), target(0, 0.5)
    assert distance(held, prompt).mean() < distance(other, prompt).mean() < distance(turned, prompt).mean()


def test_a_pair_serves_only_under_the_masks_that_its_anchor_is_drawn_for(references):
    style = frozenset({"fluent-style"})
    pairs = [
        replace(pair, categories=style if k == 0 else frozenset(), within=style if k == 1 else frozenset())
        for k, pair in enumerate(references.pairs)
    ]
    pool, rng = replace(references, pairs=pairs), np.random.default_rng(0)
    drawn = {masked: set(pool.draw(rng, 11, masked)) for masked in (frozenset(), style, style | {"weapons"})}
    assert drawn == {
        frozenset(): {0, *range(2, 12)},
        style: {1, *range(2, 12)},
        style | {"weapons"}: {1, *range(2, 12)},
    }


def test_a_model_that_edits_images_is_trained_on_those_of_the_configuration(pipe, tmp_path):
    """Each pair has an image of its own choice, for prompt and anchor alike."""
    paths = [tmp_path / f"{name}.png" for name in ("red", "noise")]
    Image.new("RGB", (100, 50), "red").save(paths[0])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(paths[1])
    options = embedded_options(["weapons"])
    prompts = options["prompts"].model_copy(update={"images": tuple(paths)})
    config = make_config({**options, "prompts": prompts, "height": 64, "width": 64}, "test")
    kontext = FluxKontextPipeline(**pipe.components)
    sampler = sampler_of(kontext, steps=2, height=64, width=64)
    pairs = PromptSource(config).erase("weapons", np.random.default_rng(0), 6)
    assert {pair.image for pair in pairs} == set(paths)
    references = make_references(pipe.transformer, sampler, pairs, encode_once(kontext, pairs, config), seed=1, batch=6)
    for k in (0, 5):
        pixels = read_image(pairs[k].image, 64, 64)
        assert pixels.shape == (1, 3, 64, 64)
        assert -1 <= pixels.min() < pixels.max() <= 1
        anchor = encode(kontext, [pairs[k].anchor], config.max_sequence_length, pixels)
        with torch.no_grad(), fast_math(torch.device("cpu"), torch.bfloat16):
            alone = rollout(pipe.transformer, sampler, references.noise[k : k + 1], anchor)
        assert float(distance(alone, references.target[k : k + 1])) < 1e-2 * float(alone.var())  # bf16 rounds
    same = [replace(pair, image=paths[0]) for pair in pairs]
    other = make_references(pipe.transformer, sampler, same, encode_once(kontext, same, config), seed=1, batch=6)
    is_red = torch.tensor([pair.image == paths[0] for pair in pairs])
    assert (
        distance(other.target, references.target)[~is_red].min()
        > distance(other.target, references.target)[is_red].max()
    )
    sees = references.condition([0, 1, 2]).reference
    assert sees.tokens.shape == (3, 16, pipe.transformer.config.in_channels)


def test_a_file_that_is_no_image_is_an_error(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "missing.png"):
        with pytest.raises(ConfigError, match=rf"prompts.images: .*{name}: cannot be read as an image"):
            read_image(tmp_path / name, 64, 64)
