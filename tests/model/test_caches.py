"""Caches of diffusers under a guard: known code, reset when the weights change."""

import copy

import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
    TextKVCacheConfig,
)

from safeflux.model.guard import guard
from safeflux.plan.status import State
from tests.helpers.policies import BOTH, SPIRITS

EVERY = {"spatial_attention_timestep_skip_range": (0, 1000), "current_timestep_callback": lambda: 500}
CACHES = {
    "first block": lambda: FirstBlockCacheConfig(threshold=1e6),
    "broadcast": lambda: PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=100, **EVERY),
    "magnitude": lambda: MagCacheConfig(threshold=1e6, max_skip_steps=10, retention_ratio=0, **MAGNITUDES),
    "Taylor": lambda: TaylorSeerCacheConfig(cache_interval=5, disable_cache_before_step=1, max_order=1),
    "text": TextKVCacheConfig,
    "sea": lambda: SeaCacheConfig(threshold=1e6),
}
ALL = {
    **CACHES,
    # it keeps nothing of one picture for the next: each begins at timesteps outside of its range
    "faster": lambda: FasterCacheConfig(spatial_attention_block_skip_range=100, is_guidance_distilled=True, **EVERY),
}
MAGNITUDES = {"num_inference_steps": 28, "mag_ratios": torch.ones(28)}
QUIET = pytest.mark.filterwarnings("ignore::FutureWarning")


@QUIET
@pytest.mark.parametrize("cache", ALL)
def test_caches_of_diffusers_are_known(transformer, store, cache):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    transformer.enable_cache(ALL[cache]())
    assert handle.verify().ok
    assert handle.verify(deep=True).ok
    _, hook = cpu_offload_with_hook(transformer, execution_device=torch.device("cpu"))
    assert handle.verify(deep=True).ok
    hook.remove()
    assert handle.verify(deep=True).ok


@QUIET
@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_forgets_the_base_when_the_model_is_guarded_swapped_and_undone(transformer, store, forward, cache):
    def draw():
        with transformer.cache_context("cond"):
            return forward(transformer)

    def draw_anew():
        transformer._reset_stateful_cache()
        return draw()

    transformer.enable_cache(CACHES[cache]())  # takes whatever it holds
    base = draw()
    handle = guard(transformer, BOTH, store=store)
    masked = draw()
    assert not torch.equal(masked, base)
    assert torch.equal(draw_anew(), masked)
    handle.swap(SPIRITS, store=store)
    swapped = draw()
    assert torch.equal(draw_anew(), swapped)
    handle.undo()
    assert torch.equal(draw(), base)


@QUIET
@pytest.mark.parametrize("cache", ALL)
def test_a_copy_of_a_model_with_a_cache_is_never_guarded(transformer, store, forward, cache):
    """Python copies the hooks and not the forwards they set, which lead to the model that was copied."""
    base = forward(transformer)
    transformer.enable_cache(ALL[cache]())
    twin = copy.deepcopy(transformer)
    handle = guard(twin, BOTH, store=store)
    if cache == "text":
        assert torch.equal(forward(twin), base)
    found = handle.verify()
    assert found.state is State.STALE
    assert "not known here" in found.faults[0]
    assert handle.verify(deep=True).faults == found.faults
