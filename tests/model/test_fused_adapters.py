"""Guards and adapters that are fused into the weights, and taken out of them again, with the real PEFT."""

import copy

import pytest
import torch

from safeflux.errors import MaskMismatchError, ModelError
from safeflux.model.apply import apply_masks_
from safeflux.model.guard import guard
from safeflux.model.writes import as_bits, places
from safeflux.plan.status import State
from tests.helpers.lora import ALLOW, MASKED, QUIET, UNMASKED, allowing, lora
from tests.helpers.policies import BLADES, BOTH, SPIRITS

pytestmark = QUIET


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [lora(), lora(use_dora=True)], ids=["lora", "dora"])
def test_a_fused_adapter_stays_and_what_is_masked_is_off(transformer, store, forward, config, dtype):
    transformer.to(dtype)
    handle = guard(transformer, ALLOW, store=store)
    plain = forward(transformer)
    transformer.add_adapter(config)
    transformer.fuse_lora()
    assert handle.verify().state is State.DEGRADED  # known at once: PEFT writes through `.data`, but keeps a list
    handle.refresh()
    assert handle.verify(deep=True).ok
    assert handle.receipt()["adapters"]["context_embedder"] == {
        "adapters": ["default"],
        "fused": ["default"],
        "scales": {"default": 4.0},
    }
    drawn = forward(transformer)
    assert drawn.isfinite().all()  # DoRA divides by the size of a row, which is 0 where all of it is masked
    assert not torch.equal(drawn, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_can_be_taken_out_of_the_weights_again(transformer, store, bits_of, dtype):
    transformer.to(dtype)
    base = bits_of(transformer)
    handle = guard(transformer, ALLOW, store=store)
    masked = bits_of(transformer)
    transformer.add_adapter(lora())
    transformer.fuse_lora()
    handle.refresh()
    transformer.unfuse_lora()
    assert handle.verify().state is State.DEGRADED  # what was added is taken from zeros
    handle.refresh()
    assert handle.verify().state is State.DEGRADED  # it is on top of the masked layers now
    transformer.unload_lora()
    assert handle.verify(deep=True).ok
    rounded = {name for name in base if any(layer in name for layer in MASKED)}  # fusing and unfusing is not exact
    assert {name for name, bits in bits_of(transformer).items() if bits != masked[name]} <= rounded
    handle.undo()
    assert {name for name, bits in bits_of(transformer).items() if bits != base[name]} <= rounded


def test_undo_after_a_fuse_gives_the_fused_model(transformer, base_transformer, store):
    handle = guard(transformer, ALLOW, store=store)
    expected = copy.deepcopy(base_transformer)
    torch.manual_seed(1)
    transformer.add_adapter(lora())
    torch.manual_seed(1)
    expected.add_adapter(lora())
    for model in (transformer, expected):
        model.fuse_lora()
    handle.refresh()
    handle.undo()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(transformer.state_dict()[name], tensor), name


def test_undo_after_fuse_and_unfuse_gives_back_the_masked_elements_bit_for_bit(transformer, base_transformer, store):
    handle = guard(transformer, ALLOW, store=store)
    writes = handle._entry.undo._writes
    transformer.add_adapter(lora())
    for change in (transformer.fuse_lora, transformer.unfuse_lora) * 2:
        change()
        handle.refresh()
    transformer.unload_lora()
    handle.undo()
    base = dict(base_transformer.named_parameters())
    for write in writes:
        elements = write.elements
        assert torch.equal(elements.read(as_bits(write.tensor)), elements.read(as_bits(base[write.name])))


def fuse(*models):
    """The same adapter into each of them."""
    for model in models:
        torch.manual_seed(1)
        model.add_adapter(lora())
        model.fuse_lora()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_fused_outlives_swaps(transformer, store, bits_of, dtype):
    unguarded = copy.deepcopy(transformer.to(dtype))
    handle = guard(transformer, allowing(BLADES), store=store)
    fuse(transformer, unguarded)
    handle.refresh()
    fused = bits_of(unguarded)
    for policy in (BOTH, SPIRITS, BLADES, SPIRITS):
        handle.swap(allowing(policy), store=store)
        assert handle.verify(deep=True).ok
        with apply_masks_(unguarded, handle.plan.masks):
            assert bits_of(transformer) == bits_of(unguarded)
    handle.undo()
    assert bits_of(transformer) == fused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_can_be_taken_out_after_a_swap(transformer, store, bits_of, dtype):
    unguarded = copy.deepcopy(transformer.to(dtype))
    base = dict(copy.deepcopy(unguarded).named_parameters())
    handle = guard(transformer, allowing(BLADES), store=store)
    fuse(transformer, unguarded)
    handle.refresh()
    blades = handle.plan.masks
    handle.swap(ALLOW, store=store)
    for model in (transformer, unguarded):
        model.unfuse_lora()
    handle.refresh()
    for model in (transformer, unguarded):
        model.unload_lora()
    assert handle.verify(deep=True).ok
    handle.undo()
    for place in places(unguarded, blades):  # off all the while, so that no rounding befell them
        original = place.elements.read(as_bits(base[place.name]))
        place.elements.put_(as_bits(place.tensor), original)
    assert bits_of(transformer) == bits_of(unguarded)


@pytest.mark.parametrize(("first", "second"), [(SPIRITS, BOTH), (BLADES, BOTH), (BOTH, SPIRITS)])
def test_a_refresh_after_a_swap_switches_off_what_the_new_policy_masks(
    transformer, base_transformer, store, bits_of, first, second
):
    handle = guard(transformer, allowing(first), store=store)
    handle.swap(allowing(second), store=store)
    masked = bits_of(transformer)
    transformer.load_state_dict(base_transformer.state_dict())
    assert handle.verify(deep=True).state is State.DEGRADED
    handle.refresh()
    assert bits_of(transformer) == masked
    handle.undo()
    assert bits_of(transformer) == bits_of(base_transformer)


def test_fusing_and_unloading_leaves_a_trace_that_a_policy_without_adapters_sees(transformer, store):
    handle = guard(transformer, BOTH, store=store)
    transformer.add_adapter(lora(UNMASKED))
    transformer.fuse_lora()
    transformer.unload_lora()
    for deep in (False, True):  # parts were replaced, so that even the fast look reads
        found = handle.verify(deep=deep)
        assert found.state is State.DEGRADED
        assert "not masked have changed since the guard" in found.faults[0]
    handle.refresh()
    second = guard(transformer, BLADES, store=store)
    assert handle.verify(deep=True).state is State.DEGRADED  # not forgotten by our own writes
    second.undo()
    handle.undo()


def test_a_model_with_a_fused_adapter_is_refused_with_the_order_that_works(transformer, store):
    transformer.add_adapter(lora(UNMASKED))
    transformer.fuse_lora()
    with pytest.raises(ModelError, match=r"'default' is fused.*unfuse_lora\(\)`, guard, fuse again.*refresh"):
        guard(transformer, ALLOW, store=store)
    transformer.unfuse_lora()
    assert guard(transformer, ALLOW, store=store).verify().ok


def test_a_model_with_an_adapter_fused_and_unloaded_is_another_base(transformer, store, bits_of):
    transformer.add_adapter(lora(UNMASKED))
    transformer.fuse_lora()
    transformer.unload_lora()
    before = bits_of(transformer)
    with pytest.raises(MaskMismatchError, match="Merged adapters"):
        guard(transformer, ALLOW, store=store)
    assert bits_of(transformer) == before
