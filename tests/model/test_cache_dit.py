"""cache-dit under a guard, with the real package: its forwards and blocks are known, and forget the policy before."""

import copy
import sys
import threading
import types
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from safeflux.errors import ModelError
from safeflux.model.guard import guard
from safeflux.model.pool.pool import PolicyPool
from safeflux.model.watch.forward import Makers, strangers
from safeflux.plan.status import State
from tests.helpers.policies import BOTH, SPIRITS

OPTIONS = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "residual_diff_threshold": 1e6, "max_warmup_steps": 1}
NEVER = {**OPTIONS, "max_warmup_steps": 99}
"""Every step is computed."""


@pytest.fixture(scope="module")
def cache_dit():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchao, which it imports
        package = pytest.importorskip("cache_dit", reason="needs cache-dit (pip install cache-dit)")
    package.logger.init_logger("cache_dit").setLevel("ERROR")
    return package


def residuals(cache_dit):
    return {"cache_config": cache_dit.DBCacheConfig(**OPTIONS)}


def taylor(cache_dit):
    return {**residuals(cache_dit), "calibrator_config": cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1)}


def pruned(cache_dit):
    return {"cache_config": cache_dit.DBPruneConfig(**OPTIONS)}


def draw(pipe):
    embeds = {"prompt_embeds": torch.ones(1, 3, 24), "pooled_prompt_embeds": torch.ones(1, 20)}
    generator = torch.Generator().manual_seed(0)
    return pipe(**embeds, num_inference_steps=4, height=32, width=32, generator=generator, output_type="latent").images


def test_a_pipeline_draws_guarded_with_cache_dit(pipe, store, cache_dit, monkeypatch):
    handle = guard(pipe, BOTH, store=store)
    plain = draw(pipe)
    cache_dit.enable_cache(pipe, cache_config=cache_dit.DBCacheConfig(**NEVER))
    try:
        for _ in range(2):
            assert handle.verify().ok
            assert handle.verify(deep=True).ok
            assert torch.equal(draw(pipe), plain)
        assert handle.verify().ok
        with monkeypatch.context() as patch:
            patch.delattr("safeflux.model.handle.read")  # nothing moved, so nothing is read
            draw(pipe)
            assert handle.verify().ok
        handle.undo()
        base = draw(pipe)
        assert not torch.equal(base, plain)
        again = guard(pipe, BOTH, store=store)  # over it, as under it
        assert again.verify(deep=True).ok
        assert torch.equal(draw(pipe), plain)
    finally:
        cache_dit.disable_cache(pipe)  # it patches the pipeline's class
    assert again.verify(deep=True).ok
    assert torch.equal(draw(pipe), plain)


@pytest.mark.parametrize("cache", [residuals, taylor, pruned], ids=lambda cache: cache.__name__)
def test_what_was_cached_under_one_policy_is_never_drawn_with_under_another(
    transformer, base_transformer, store, forward, cache_dit, cache
):
    plain = copy.deepcopy(base_transformer)
    drawn = {"base": forward(plain)}
    for policy in (BOTH, SPIRITS):
        with guard(plain, policy, store=store):
            drawn[policy.name] = forward(plain)
    cache_dit.enable_cache(transformer, **cache(cache_dit))

    def first():
        found = forward(transformer)
        forward(transformer)
        (context,) = transformer._context_manager._cached_context_manager.values()
        assert context.get_cached_steps()  # the second came from the cache
        return found

    assert torch.equal(first(), drawn["base"])
    handle = guard(transformer, BOTH, store=store)
    assert torch.equal(first(), drawn[BOTH.name])
    handle.refresh()
    assert torch.equal(first(), drawn[BOTH.name])
    handle.swap(SPIRITS, store=store)
    assert torch.equal(first(), drawn[SPIRITS.name])
    assert handle.verify(deep=True).ok
    handle.undo()
    assert torch.equal(first(), drawn["base"])
    pool = PolicyPool(transformer, {"both": BOTH, "spirits": SPIRITS}, store=store)
    for policy in (BOTH, SPIRITS, BOTH):
        with pool.under("both" if policy is BOTH else "spirits"):
            assert torch.equal(first(), drawn[policy.name])


def test_a_copy_draws_with_the_blocks_of_the_first_model_and_is_never_guarded(transformer, store, forward, cache_dit):
    base = forward(transformer)
    cache_dit.enable_cache(transformer, **residuals(cache_dit))
    twin = copy.deepcopy(transformer)
    handle = guard(twin, BOTH, store=store)
    assert torch.equal(forward(twin), base)
    found = handle.verify()
    assert found.state is State.STALE
    assert "not known here" in found.faults[0]
    assert handle.verify(deep=True).faults == found.faults


def blocks_of_another_model(cache_dit, model, other):
    adapter = cache_dit.BlockAdapter(
        transformer=model,
        blocks=[other.transformer_blocks],
        blocks_name=["transformer_blocks"],
        forward_pattern=[cache_dit.ForwardPattern.Pattern_1],
    )
    cache_dit.enable_cache(adapter, **residuals(cache_dit))


def blocks_put_in_later(cache_dit, model, other):
    cache_dit.enable_cache(model, **residuals(cache_dit))
    wrapped = [cell.cell_contents for cell in model.forward.func.__closure__]
    inner = next(each for each in wrapped if isinstance(each, types.FunctionType))
    cells = dict(zip(inner.__code__.co_freevars, inner.__closure__, strict=True))
    (blocks,) = (held[0] for held in cells["unified_blocks"].cell_contents.values())
    blocks.transformer_blocks = other.transformer_blocks


@pytest.mark.parametrize("change", [blocks_of_another_model, blocks_put_in_later], ids=lambda change: change.__name__)
def test_blocks_of_another_model_are_never_guarded(transformer, other_transformer, store, cache_dit, change):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    change(cache_dit, transformer, other_transformer)
    found = handle.verify()
    assert found.state is State.STALE
    assert "not known here" in found.faults[0]


def test_blocks_put_in_after_it_was_seen_are_found_by_the_fast_look(transformer, other_transformer, store, cache_dit):
    handle = guard(transformer, BOTH, store=store)
    cache_dit.enable_cache(transformer, **residuals(cache_dit))
    assert handle.verify().ok
    blocks_put_in_later(cache_dit, transformer, other_transformer)
    assert handle.verify().state is State.STALE


def test_flux2_is_known(flux2_transformer, store, cache_dit):
    cache_dit.enable_cache(flux2_transformer, **residuals(cache_dit))
    assert not strangers(Makers(flux2_transformer))


@contextmanager
def another_thread_draws(transformer, forward):
    """A thread that draws once: halfway after `to_the_midst`, done after `to_the_end`."""
    begin, midst, go_on = threading.Event(), threading.Event(), threading.Event()

    class Midst(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not midst.is_set() and len(transformer.transformer_blocks) == 1:
                midst.set()
                assert go_on.wait(60)
            return func(*args, **kwargs or {})

    def draw():
        begin.wait(60)
        with Midst():
            forward(transformer)

    def to_the_midst():
        begin.set()
        assert midst.wait(60)

    def to_the_end():
        begin.set()
        go_on.set()
        thread.join(60)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        yield to_the_midst, to_the_end
    finally:
        to_the_end()


def both_lists(cache_dit, model):
    """Blocks of cache-dit for each of the two lists; its own way puts one in for both, and an empty list."""
    adapter = cache_dit.BlockAdapter(
        transformer=model,
        blocks=[model.transformer_blocks, model.single_transformer_blocks],
        blocks_name=["transformer_blocks", "single_transformer_blocks"],
        forward_pattern=[cache_dit.ForwardPattern.Pattern_1] * 2,
    )
    cache_dit.enable_cache(adapter, **residuals(cache_dit))


def one_list(cache_dit, model):
    cache_dit.enable_cache(model, **residuals(cache_dit))


@pytest.mark.parametrize("enable", [one_list, both_lists], ids=lambda enable: enable.__name__)
def test_in_the_midst_of_a_picture_another_thread_finds_it_guarded_and_writes_nothing(
    transformer, other_transformer, store, forward, cache_dit, monkeypatch, enable
):
    handle = guard(transformer, BOTH, store=store)
    enable(cache_dit, transformer)
    with another_thread_draws(transformer, forward) as (to_the_midst, _):
        to_the_midst()
        for deep in (False, True):
            found = handle.verify(deep=deep)
            assert (found.state, found.faults) == (State.GUARDED, ())
        with monkeypatch.context() as patch:
            patch.delattr("safeflux.model.handle.read")
            assert handle.verify().ok  # nothing moved since, so nothing is read
        for write in (handle.undo, handle.refresh, lambda: guard(transformer, SPIRITS, store=store)):
            with pytest.raises(ModelError, match="a part of itself"):
                write()
        mine, (own,) = transformer.norm_out, transformer.transformer_blocks
        transformer.norm_out = other_transformer.norm_out
        assert handle.verify().state is State.DEGRADED
        transformer.norm_out = mine
        assert handle.verify().ok
        own.transformer_blocks, blocks = other_transformer.transformer_blocks, own.transformer_blocks
        assert handle.verify().state is State.STALE
        own.transformer_blocks = blocks
        assert handle.verify().ok
    assert handle.verify().ok


@pytest.mark.parametrize("cache", [residuals, pruned], ids=lambda cache: cache.__name__)
def test_who_looks_all_the_time_while_pictures_are_drawn_finds_it_guarded(
    transformer, store, forward, cache_dit, cache
):
    handle = guard(transformer, BOTH, store=store)
    cache_dit.enable_cache(transformer, **cache(cache_dit))
    done = threading.Event()

    def draw():
        for _ in range(10):
            forward(transformer)
        done.set()

    thread = threading.Thread(target=draw)
    looks = []
    thread.start()
    while not done.is_set():
        looks += [handle.verify(), handle.verify(deep=True)]
    thread.join()
    assert looks
    assert {(found.state, found.faults) for found in looks} == {(State.GUARDED, ())}


def run_until(number, look, then):
    """Look, and after so many calls of functions do something else; the number of calls."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"
        if event == "call" and calls == number:
            then()

    sys.setprofile(count)
    try:
        look()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("is_in_midst", [False, True], ids=["begins", "ends"])
def test_a_picture_that_begins_or_ends_while_the_model_is_looked_at(
    transformer, store, forward, cache_dit, is_in_midst
):
    handle = guard(transformer, BOTH, store=store)
    cache_dit.enable_cache(transformer, **residuals(cache_dit))
    refused = {"verify": [], "guard": []}
    looks = {"verify": lambda: handle.verify(deep=True).state, "guard": lambda: guard(transformer, BOTH, store=store)}
    for name, look in looks.items():
        total = run_until(-1, look, None)
        for number in range(1, total, total // 8):
            with another_thread_draws(transformer, forward) as (to_the_midst, to_the_end):
                if is_in_midst:
                    to_the_midst()
                try:
                    run_until(number, look, to_the_end if is_in_midst else to_the_midst)
                except ModelError as error:
                    refused[name].append(str(error))
            assert handle.verify().ok
    assert not refused["verify"]
    assert all("a part of itself" in text or "is missing" in text for text in refused["guard"])
