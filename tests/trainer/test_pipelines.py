"""What each family's pipeline prepares: prompts, images, guidance; and the pipelines that are refused."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FluxFillPipeline, FluxKontextPipeline
from safeflux.trainer.asked.config import make_config
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.objective.laid_out import Shape
from safeflux.trainer.objective.memory import estimate_memory
from safeflux.trainer.sampling.pipelines import PIPELINES, encode, preparation_of, sampler_of
from safeflux.trainer.sampling.rollout import rollout

from safeflux.errors import ModelError
from safeflux.families.sites import find_sites
from safeflux.profiles.load import load_profile
from safeflux.reference.model import load_pipeline
from tests.helpers.tiny import save_tiny

BIG = {"steps": 2, "height": 64, "width": 64}
SIZE = {"steps": 2, "height": 8, "width": 12}


@pytest.mark.parametrize(
    ("name", "scale"),
    [("emoji-flux", 1.0), ("chroma1-hd", 1.0), ("chroma1-hd", 3.0)],
)
def test_encoded_prompts_draw_what_the_pipeline_draws_of_them(name, scale, tmp_path):
    pipe = load_pipeline() if name == "emoji-flux" else load_pipeline(save_tiny(tmp_path / name, name))
    prompts, guidance = ["a dagger", "a drawing of a cat and a cup"], {"guidance_scale": scale}
    sampler = sampler_of(pipe, steps=2, height=64, width=64, guidance=scale, max_sequence_length=20)
    assert (sampler.cfg is not None) == (scale > 1)
    noise, condition = sampler.noise(2, seed=1), encode(pipe, prompts, 20)
    with torch.no_grad():
        ours = rollout(pipe.transformer, sampler, noise, condition)
    size = {"num_inference_steps": 2, "height": 64, "width": 64, "max_sequence_length": 20}
    theirs = pipe(prompt=prompts, latents=noise, output_type="latent", **size, **guidance).images
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    if name == "chroma1-hd":
        assert condition.mask.sum(dim=1).tolist() == [4, 20]  # one of padding too, if any


@pytest.mark.parametrize(
    ("family", "scale", "layers"), [("flux2", 4.0, None), ("klein", 1.0, None), ("klein", 4.0, (1, 2, 5))]
)
def test_prompts_of_flux2_are_encoded_and_numbered_as_the_pipeline_does(make_case, family, scale, layers):
    case, prompts, length = make_case(family), ["a cat", "a dagger of a cup"], 200  # dev's system message comes first
    case.options |= {"guidance_scale": scale} | ({"text_encoder_out_layers": layers} if layers else {})
    if family == "klein":
        case.pipe.register_to_config(is_distilled=scale == 1)
    sampler = sampler_of(case.pipe, **SIZE, guidance=scale, max_sequence_length=length, layers=layers)
    assert (sampler.cfg is not None) == (family == "klein" and scale > 1)
    noise, condition = sampler.noise(2, seed=1), encode(case.pipe, prompts, length, layers=layers)
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


def test_guidance_by_a_second_forward_takes_as_much_again_and_has_the_gradient_of_both(tmp_path):
    pipe = load_pipeline(save_tiny(tmp_path / "klein", "flux2-klein-base-4b"))
    once, twice = (sampler_of(pipe, **BIG, guidance=scale, max_sequence_length=20) for scale in (1.0, 3.0))
    noise, condition = once.noise(1, 0).double(), encode(pipe.to(torch.float64), ["a cat"], 20)
    twice = replace(twice, cfg=replace(twice.cfg, negative=encode(pipe, [""], 20)))
    weight = pipe.transformer.proj_out.weight.requires_grad_()
    found = {
        mode: torch.autograd.grad(rollout(pipe.transformer, twice, noise, condition, recompute=mode).sum(), weight)[0]
        for mode in ("none", "step", "block")
    }
    for each in found.values():
        torch.testing.assert_close(each, found["none"], rtol=1e-9, atol=1e-12)
    sites = list(find_sites(pipe.transformer).values())
    config = make_config(embedded_options(["weapons"]) | {"recompute": "step"}, "test")
    one, two = (estimate_memory(pipe.transformer, s, condition, config, sites, 1).activations for s in (once, twice))
    assert 1.8 < two / one <= 2


def test_a_model_is_laid_out_with_the_second_forward_that_its_guidance_takes():
    shape = Shape.of(load_profile("flux2-klein-base-4b"))
    assert [shape.cfg_scale(scale) for scale in (None, 3.0, 1.0)] == [4.0, 3.0, None]
    assert Shape.of(load_profile("flux2-klein-4b")).cfg_scale(None) is None
    assert Shape.of(load_profile("flux1-dev")).cfg_scale(None) is None


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
