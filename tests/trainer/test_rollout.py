"""The differentiable sampler: the pipeline's own pictures, and plain autograd's gradients."""

import pytest
import torch
from safeflux.trainer.factors import factors_from, masked_parameters
from safeflux.trainer.rollout import Condition, Sampler, rollout, sampler_of
from torch.func import functional_call

from safeflux.apply import apply_masks_
from safeflux.masks import MaskSet
from safeflux.sites import find_sites


@pytest.fixture
def sampler(pipe) -> Sampler:
    return sampler_of(pipe, steps=3, height=4, width=4)


@pytest.fixture
def condition(inputs) -> Condition:
    return Condition(inputs["encoder_hidden_states"], inputs["pooled_projections"])


def test_a_rollout_is_what_the_pipeline_draws(pipe, sampler, condition):
    noise = sampler.noise(2, seed=3)
    with torch.no_grad():
        ours = rollout(pipe.transformer, sampler, noise, condition)
    theirs = pipe(
        prompt_embeds=condition.tokens,
        pooled_prompt_embeds=condition.pooled,
        latents=noise,
        num_inference_steps=3,
        height=4,
        width=4,
        output_type="latent",
    ).images
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_the_recomputed_gradient_is_that_of_plain_autograd(pipe, condition, steps):
    transformer = pipe.transformer.double()
    sampler = sampler_of(pipe, steps=steps, height=4, width=4)
    noise, cond = sampler.noise(2, seed=5).double(), Condition(condition.tokens.double(), condition.pooled.double())
    sites = find_sites(transformer)
    draw = torch.Generator().manual_seed(0)
    factors = {name: torch.rand(site.shape, generator=draw).requires_grad_() for name, site in sites.items()}

    ours = _gradients(lambda p: rollout(transformer, sampler, noise, cond, p), transformer, sites, factors)
    plain = _gradients(lambda p: _plain(transformer, sampler, noise, cond, p), transformer, sites, factors)
    for name in sites:
        difference = (ours[name] - plain[name]).norm() / plain[name].norm().clamp_min(1e-30)
        assert difference <= 1e-9, name
    assert all(gradient.abs().max() > 0 for name, gradient in plain.items() if not name.endswith("ff_context:ff"))


@pytest.mark.parametrize("kind", ["ff", "mlp", "norm", "weight"])
def test_factors_of_zero_and_one_are_the_masked_model(pipe, sampler, condition, make_masks, kind):
    masks: MaskSet = make_masks(4, kinds=(kind,), share=0.3)
    sites = {name: site for name, site in find_sites(pipe.transformer).items() if site.kind == kind}
    noise = sampler.noise(2, seed=1)
    with torch.no_grad():
        parameters = masked_parameters(pipe.transformer, sites, factors_from(masks, sites))
        gated = rollout(pipe.transformer, sampler, noise, condition, parameters)
        base = rollout(pipe.transformer, sampler, noise, condition)
        with apply_masks_(pipe.transformer, masks):
            written = rollout(pipe.transformer, sampler, noise, condition)
    assert torch.allclose(gated, written, rtol=1e-4, atol=1e-6)
    assert (written - base).abs().max() > 1e-4


def test_noise_is_fixed_by_its_seed(sampler):
    assert torch.equal(sampler.noise(2, seed=1), sampler.noise(2, seed=1))
    assert not torch.equal(sampler.noise(2, seed=1), sampler.noise(2, seed=2))


def _plain(transformer, sampler, x, condition, parameters):
    """All steps in one graph, nothing recomputed."""
    for sigma, following in zip(sampler.sigmas[:-1], sampler.sigmas[1:], strict=True):
        inputs = {
            "hidden_states": x,
            "timestep": sigma.expand(len(x)).to(x.dtype),
            "encoder_hidden_states": condition.tokens,
            "pooled_projections": condition.pooled,
            "img_ids": sampler.image_ids,
            "txt_ids": torch.zeros(condition.tokens.shape[1], 3),
            "return_dict": False,
        }
        x = x + (following - sigma) * functional_call(transformer, parameters, kwargs=inputs)[0]
    return x


def _gradients(run, transformer, sites, factors):
    output = run(masked_parameters(transformer, sites, factors))
    gradients = torch.autograd.grad(output.square().mean(), list(factors.values()), allow_unused=True)
    return {n: torch.zeros(()) if g is None else g for n, g in zip(factors, gradients, strict=True)}
