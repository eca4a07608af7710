"""The differentiable sampler: the pipeline's own pictures, and plain autograd's gradients."""

import runpy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.gating import GatedModel
from safeflux.trainer.sampling.precision import fast_math
from safeflux.trainer.sampling.rollout import Condition, Sampler, rollout, sampler_of
from torch.func import functional_call

from safeflux.families.sites import find_sites
from safeflux.masks.mask_set import MaskSet
from safeflux.model.apply import apply_masks_
from tests.helpers.factors import masked_parameters

FAMILIES = ["dev", "schnell", "kontext", "kontext without image", "flux2", "flux2 with image", "klein", "chroma"]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def sampler_for(case, steps: int) -> Sampler:
    return sampler_of(case.pipe, steps=steps, height=8, width=12, guidance=case.options.get("guidance_scale"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_rollout_is_what_the_pipeline_draws(make_case, family, steps):
    case = make_case(family)
    sampler = sampler_for(case, steps)
    noise = sampler.noise(2, seed=3)
    with torch.no_grad():
        ours = rollout(case.pipe.transformer, sampler, noise, case.condition)
    theirs = case.draw(noise, steps)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(theirs[:1], theirs[1:], atol=1e-2)


@pytest.mark.parametrize("family", ["kontext", "flux2 with image"])
def test_a_reference_image_changes_what_is_drawn(make_case, family):
    case = make_case(family)
    sampler, condition = sampler_for(case, 2), case.condition
    alone = Condition(condition.tokens, condition.pooled, condition.text_ids)
    with torch.no_grad():
        drawn = [rollout(case.pipe.transformer, sampler, sampler.noise(2, 3), c) for c in (condition, alone)]
    assert (drawn[0] - drawn[1]).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["dev", "flux2"])
@pytest.mark.parametrize(
    ("dtype", "steps"), [*((torch.float64, steps) for steps in range(1, 9)), (torch.float32, 1), (torch.float32, 8)]
)
def test_the_recomputed_gradient_is_that_of_plain_autograd(make_case, family, dtype, steps):
    check_gradients(make_case(family).to(dtype), steps, TOLERANCE[dtype])


@pytest.mark.parametrize("family", ["schnell", "kontext", "klein", "chroma"])
def test_so_it_is_in_the_other_families(make_case, family):
    check_gradients(make_case(family).to(torch.float64), 3, 1e-9, ("none", "step", "block"))


def test_so_it_is_for_whoever_had_diffusers_recompute_its_blocks(make_case):
    case = make_case("dev").to(torch.float64)
    case.pipe.transformer.enable_gradient_checkpointing()
    theirs = case.pipe.transformer._gradient_checkpointing_func
    check_gradients(case, 2, 1e-9)
    assert case.pipe.transformer.gradient_checkpointing
    assert case.pipe.transformer._gradient_checkpointing_func is theirs


def test_a_second_gradient_of_the_same_rollout_is_the_same(make_case):
    case = make_case("dev").to(torch.float64)
    for recompute in ("step", "block"):
        model, vector = gated_model(case)
        with model.under(vector) as gates:
            loss = roll(case, 2, recompute).square().mean()
            first, again = gates.gradient(loss, keep_graph=True), gates.gradient(loss)
        assert torch.equal(first, again)
        assert first.abs().max() > 0


@pytest.mark.parametrize("recompute", ["step", "block"])
def test_recomputation_happens_in_fast_math_too(make_case, recompute):
    case = make_case("flux2")
    gradients = []
    for mode in ("none", recompute):
        model, vector = gated_model(case)
        with fast_math(torch.device("cpu"), torch.bfloat16), model.under(vector) as gates:
            gradients.append(gates.gradient(roll(case, 2, mode).square().mean()))
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


def test_a_block_is_run_once_more_for_each_level_of_recomputation(make_case):
    case = make_case("flux2")
    block, runs = case.pipe.transformer.transformer_blocks[1], []
    block.register_forward_pre_hook(lambda *_: runs.append(1))  # before: a recomputation stops early
    counts = {}
    for recompute in ("none", "step", "block"):
        runs.clear()
        model, vector = gated_model(case)
        with model.under(vector) as gates:
            gates.gradient(roll(case, 3, recompute).sum())
        counts[recompute] = len(runs)
    assert counts == {"none": 3, "step": 6, "block": 9}


@pytest.mark.parametrize("family", ["dev", "flux2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["ff", "mlp", "norm", "weight"])
@pytest.mark.filterwarnings("ignore:.*dtype")
def test_gates_of_zero_and_one_are_the_masked_model(make_case, family, dtype, kind):
    case = make_case(family).to(dtype)
    transformer = case.pipe.transformer
    sites = {name: site for name, site in find_sites(transformer).items() if site.kind == kind}
    if family == "flux2" and kind == "norm":
        assert not sites
        return
    draw = torch.Generator().manual_seed(4)
    masks = MaskSet({name: torch.rand(site.shape, generator=draw) >= 0.3 for name, site in sites.items()})
    sampler = sampler_for(case, 3)
    noise = sampler.noise(2, seed=1)
    with torch.no_grad():
        bits = Bits(sites)
        with GatedModel(transformer, bits).under(bits.keep_of(masks)):
            gated = rollout(transformer, sampler, noise, case.condition)
        base = rollout(transformer, sampler, noise, case.condition)
        with apply_masks_(transformer, masks):
            written = rollout(transformer, sampler, noise, case.condition)
    assert gated.dtype == torch.float32
    assert torch.equal(gated, written)
    assert (written - base).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["dev", "flux2"])
@pytest.mark.parametrize("is_mask", [True, False])
def test_parts_of_a_batch_under_gates_of_their_own_are_what_each_is_alone(make_case, family, is_mask):
    case = make_case(family).to(torch.float64)
    model, first = gated_model(case)
    both = torch.stack([first, first.flip(0)])
    both = both > 0.3 if is_mask else both
    sampler, transformer = sampler_for(case, 2), case.pipe.transformer
    noise = sampler.noise(2, seed=5).double()
    with model.under(both) as gates:
        together = rollout(transformer, sampler, noise, case.condition)
        gradients = gates.gradient(together.square().sum())
    for k in range(2):
        with model.under(both[k]) as gates:
            alone = rollout(transformer, sampler, noise[k : k + 1], case.condition[k : k + 1])
            gradient = gates.gradient(alone.square().sum())
        assert torch.allclose(together[k : k + 1], alone, rtol=1e-12, atol=1e-12)
        assert (gradients[k] - gradient).norm() <= 1e-9 * gradient.norm()
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_a_batch_that_does_not_divide_into_its_parts_is_an_error(make_case):
    case = make_case("dev")
    model, vector = gated_model(case)
    with model.under(vector.expand(3, -1)), pytest.raises(RuntimeError, match="unflatten"):
        roll(case, 1, "none")


def test_an_unknown_way_of_recomputation_is_an_error(make_case):
    with pytest.raises(ValueError, match=r"expected one of \('none', 'step', 'block'\), got 'blocks'"):
        roll(make_case("schnell"), 1, "blocks")


def test_noise_is_fixed_by_its_seed(make_case):
    sampler = sampler_for(make_case("dev"), 1)
    assert torch.equal(sampler.noise(2, seed=1), sampler.noise(2, seed=1))
    assert not torch.equal(sampler.noise(2, seed=1), sampler.noise(2, seed=2))


def test_a_part_of_a_condition_draws_a_part_of_the_batch(make_case):
    case = make_case("kontext")
    sampler = sampler_for(case, 2)
    noise = sampler.noise(2, seed=1)
    with torch.no_grad():
        whole = rollout(case.pipe.transformer, sampler, noise, case.condition)
        part = rollout(case.pipe.transformer, sampler, noise[1:], case.condition[1:])
    assert torch.allclose(whole[1:], part, atol=1e-5)


@pytest.fixture(scope="module")
def peaks() -> dict[tuple[str, int], int]:
    """What the benchmark of memory finds on a tiny model, by recomputation and number of steps."""
    benchmark = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "rollout_memory.py"))
    size = {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 4, "attention_head_dim": 64}
    case = benchmark["Case"](size, tokens=96, text=8)
    asked = [("step", 4), ("step", 28), ("block", 4), ("block", 6), ("none", 2), ("none", 4)]
    return {(recompute, steps): case.peak(steps, recompute) for recompute, steps in asked}


def test_memory_grows_by_no_more_than_the_latents_of_each_step(peaks):
    latents = 96 * 64 * 4  # tokens, channels, bytes of a float32
    assert peaks["step", 28] <= 1.15 * peaks["step", 4]
    assert (peaks["step", 28] - peaks["step", 4]) / 24 <= 1.1 * latents
    assert (peaks["block", 6] - peaks["block", 4]) / 2 <= 1.1 * latents
    assert (peaks["none", 4] - peaks["none", 2]) / 2 > 20 * latents


def test_recomputing_more_takes_less_memory(peaks):
    assert peaks["block", 4] < 0.9 * peaks["step", 4]
    assert peaks["step", 4] < 0.5 * peaks["none", 4]


def check_gradients(case, steps, tolerance, modes=("step", "block")):
    """Gates against one graph of masked copies that keeps everything, at random relaxed gates on every site."""
    model, vector = gated_model(case)
    sites = find_sites(case.pipe.transformer)
    plain = plain_gradients(case, steps, Bits(sites).split(vector))
    assert all(plain[name].norm() > 0 for name in sites if not name.endswith("ff_context:ff"))
    for recompute in modes:
        with model.under(vector) as gates:
            found = gates.gradient(roll(case, steps, recompute).square().mean())
        ours = Bits(sites).split(found)
        for name in sites:
            difference = (ours[name] - plain[name]).norm() / plain[name].norm().clamp_min(1e-30)
            assert difference <= tolerance, (recompute, name)
        assert all("forward" not in vars(module) for module in case.pipe.transformer.modules())


def gated_model(case) -> tuple[GatedModel, torch.Tensor]:
    """Every site of the model, and random gates for them in its dtype."""
    bits = Bits(find_sites(case.pipe.transformer.requires_grad_(False)))
    draw = torch.Generator().manual_seed(0)
    dtype = case.condition.tokens.dtype
    return GatedModel(case.pipe.transformer, bits), torch.rand(bits.count, generator=draw).to(dtype)


def roll(case, steps, recompute):
    sampler = sampler_for(case, steps)
    noise = sampler.noise(2, seed=5).to(case.condition.tokens.dtype)
    return rollout(case.pipe.transformer, sampler, noise, case.condition, recompute=recompute)


def plain_gradients(case, steps, gates):
    """By autograd through masked copies of the weights, sampling spelled out."""
    transformer, sampler = case.pipe.transformer, sampler_for(case, steps)
    factors = {name: value.clone().requires_grad_() for name, value in gates.items()}
    parameters = masked_parameters(transformer, find_sites(transformer), factors)
    x, was = sampler.noise(2, seed=5).to(case.condition.tokens.dtype), transformer.gradient_checkpointing
    transformer.gradient_checkpointing = False
    for sigma, following in pairwise(sampler.sigmas):
        x = x + (following - sigma) * case.velocity(
            lambda **inputs: functional_call(transformer, parameters, kwargs=inputs), x, sigma
        )
    transformer.gradient_checkpointing = was
    found = torch.autograd.grad(x.square().mean(), list(factors.values()), allow_unused=True)
    return {n: torch.zeros(()) if g is None else g for n, g in zip(factors, found, strict=True)}
