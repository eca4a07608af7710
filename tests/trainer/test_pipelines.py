"""What each family's pipeline prepares: prompts, images, guidance; and the pipelines that are refused."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FluxFillPipeline, FluxKontextPipeline
from safeflux.trainer.sampling.pipelines import PIPELINES, encode, preparation_of, sampler_of
from safeflux.trainer.sampling.rollout import rollout

from safeflux.errors import ModelError
from safeflux.reference.model import load_pipeline
from tests.helpers.tiny import save_tiny

SIZE = {"steps": 2, "height": 8, "width": 12}


@pytest.mark.parametrize("name", ["emoji-flux", "chroma1-hd"])
def test_encoded_prompts_draw_what_the_pipeline_draws_of_them(name, tmp_path):
    pipe = load_pipeline() if name == "emoji-flux" else load_pipeline(save_tiny(tmp_path / name, name))
    prompts, guidance = ["a dagger", "a drawing of a cat and a cup"], {"guidance_scale": 1.0}
    sampler = sampler_of(pipe, steps=2, height=64, width=64, guidance=1.0)
    noise, condition = sampler.noise(2, seed=1), encode(pipe, prompts, 20)
    with torch.no_grad():
        ours = rollout(pipe.transformer, sampler, noise, condition)
    size = {"num_inference_steps": 2, "height": 64, "width": 64, "max_sequence_length": 20}
    theirs = pipe(prompts, latents=noise, output_type="latent", **size, **guidance).images
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    if name == "chroma1-hd":
        assert condition.mask.sum(dim=1).tolist() == [4, 20]  # one of padding too, if any


@pytest.mark.parametrize("family", ["flux2", "klein"])
def test_prompts_of_flux2_are_encoded_and_numbered_as_the_pipeline_does(make_case, family):
    case, prompts, length = make_case(family), ["a cat", "a dagger of a cup"], 200  # dev's system message comes first
    sampler = sampler_of(case.pipe, **SIZE, guidance=case.options.get("guidance_scale"))
    noise, condition = sampler.noise(2, seed=1), encode(case.pipe, prompts, length)
    with torch.no_grad():
        ours = rollout(case.pipe.transformer, sampler, noise, condition)
    theirs = case.draw(noise, SIZE["steps"], prompt=prompts, max_sequence_length=length)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert condition.tokens.shape == (2, length, 24)
    assert not torch.allclose(condition.tokens[0], condition.tokens[1])
    assert condition.text_ids[:, -1].tolist() == list(range(length))


@pytest.mark.parametrize("family", ["kontext", "flux2"])
def test_an_image_is_encoded_for_every_prompt(make_case, family):
    is_kontext = family == "kontext"
    pipe = FluxKontextPipeline(**load_pipeline().components) if is_kontext else make_case(family).pipe
    pixel = pipe.vae_scale_factor * 2  # pixels along a token
    image, state = torch.rand(1, 3, 2 * pixel, 4 * pixel) * 2 - 1, torch.get_rng_state()
    encoded = encode(pipe, ["a cat", "a dagger"], 20, image).reference
    assert encoded.tokens.shape == (2, 8, pipe.transformer.config.in_channels)
    assert torch.equal(encoded.tokens[0], encoded.tokens[1])
    assert encoded.ids.shape == (8, 3 if is_kontext else 4)
    assert encoded.ids[:, 0].unique().tolist() == [1 if is_kontext else 10]
    assert not encoded.tokens.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_guidance_goes_where_the_model_has_an_embedding_for_it(make_case):
    guidance = {family: sampler_of(make_case(family).pipe, **SIZE).guidance for family in ("dev", "schnell", "flux2")}
    assert guidance == {"dev": 3.5, "schnell": None, "flux2": 4.0}  # the pipelines' own defaults
    assert sampler_of(make_case("dev").pipe, **SIZE, guidance=2.0).guidance == 2.0


@pytest.mark.parametrize("family", ["klein", "chroma"])
def test_a_model_that_is_not_distilled_is_refused_at_guidance(make_case, family):
    pipe = make_case(family).pipe
    if family == "klein":
        pipe.register_to_config(is_distilled=False)
    with pytest.raises(ModelError, match=r"not distilled.*guidance=1"):
        sampler_of(pipe, **SIZE)
    assert sampler_of(pipe, **SIZE, guidance=1.0).guidance is None


def test_an_image_is_refused_by_a_pipeline_that_takes_none():
    with pytest.raises(ModelError, match="FluxPipeline draws from text alone"):
        encode(load_pipeline(), ["a cat"], 20, torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)])
def test_a_sampler_that_is_not_plain_euler_is_refused(make_case, scheduler):
    pipe = make_case("dev").pipe
    pipe.scheduler = scheduler
    with pytest.raises(ModelError, match="plain Euler steps"):
        sampler_of(pipe, **SIZE)


def test_a_pipeline_of_no_known_class_is_refused_and_a_derived_one_is_not():
    with pytest.raises(ModelError, match=r"FluxKontextPipeline.*got FluxFillPipeline"):
        preparation_of(FluxFillPipeline.__new__(FluxFillPipeline))
    derived = type("Mine", (type(load_pipeline()),), {})
    assert preparation_of(derived.__new__(derived)) is PIPELINES["FluxPipeline"]
