"""Caches of diffusers and cache-dit under a guard: known code, reset when the weights change."""

import sys
import types

import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers.hooks import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
    TextKVCacheConfig,
)

from safeflux.model.guard import guard
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
MAGNITUDES = {"num_inference_steps": 28, "mag_ratios": torch.ones(28)}
QUIET = pytest.mark.filterwarnings("ignore::FutureWarning")


@QUIET
@pytest.mark.parametrize("cache", CACHES)
def test_caches_of_diffusers_are_known(transformer, store, cache):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    transformer.enable_cache(CACHES[cache]())
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


def test_cache_dit_is_known(pipe, store, monkeypatch):
    """A method of its package, bound to the model, as `enable_cache` sets it; the package need not be installed."""
    cache_dit = types.ModuleType("cache_dit.caching.stand_in")
    exec("def forward(self, *args, **options): return type(self).forward(self, *args, **options)", vars(cache_dit))
    monkeypatch.setitem(sys.modules, cache_dit.__name__, cache_dit)
    handle = guard(pipe, BOTH, store=store)
    pipe.transformer.forward = types.MethodType(cache_dit.forward, pipe.transformer)
    assert handle.verify().ok
