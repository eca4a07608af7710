"""What `verify` tells of a guarded model: tampering, loading, moving, offload, adapters, and what it costs to ask."""

import pytest
import torch
from diffusers import FluxImg2ImgPipeline

from safeflux.errors import ApplyError
from safeflux.model.guard import guard
from safeflux.plan.status import State
from tests.helpers.policies import BLADES, BOTH, SPIRITS


def test_a_tampered_weight_is_found_by_name(transformer, store):
    handle = guard(transformer, SPIRITS, store=store)
    name = "transformer_blocks.1.ff_context"
    neuron = int(handle.plan.masks.bits[f"{name}:ff"].off()[0])
    with torch.no_grad():
        transformer.get_submodule(name).net[2].weight[7, neuron] = 1e-6
    found = handle.verify()
    assert found.state is State.DEGRADED
    assert len(found.faults) == 1
    assert f"tensor '{name}.net.2.weight' is not zero in 1 of" in found.faults[0]
    with pytest.raises(ApplyError, match=r"cannot undo: transformer_blocks.1.ff_context.net.2.weight"):
        handle.undo()


def masked_weight(transformer, handle):
    """A weight matrix with a masked column, and the column's number."""
    name = "transformer_blocks.1.ff_context"
    neuron = int(handle.plan.masks.bits[f"{name}:ff"].off()[0])
    return transformer.get_submodule(name).net[2].weight, neuron


def test_only_a_deep_look_sees_a_write_that_torch_keeps_no_version_of(transformer, store):
    handle = guard(transformer, SPIRITS, store=store)
    assert handle.verify().ok
    weight, neuron = masked_weight(transformer, handle)
    weight.data[7, neuron] = 1e-6
    assert handle.verify().ok
    assert handle.verify(deep=True).state is State.DEGRADED
    assert handle.verify().state is State.DEGRADED  # known now
    weight.data[7, neuron] = 0
    assert handle.verify().ok


def test_what_was_written_or_moved_is_read_once_and_known_from_then_on(transformer, store, reads):
    handle = guard(transformer, SPIRITS, store=store)
    weight, neuron = masked_weight(transformer, handle)
    other = transformer.time_text_embed.timestep_embedder.linear_1
    assert reads(lambda: handle.verify()) > 0
    changes = (
        lambda: None,
        lambda: weight.data.mul_(1),  # no version
        lambda: weight.requires_grad_(True),
    )
    for change in changes:
        change()
        assert reads(lambda: handle.verify()) == 0
    with torch.no_grad():
        weight[0, neuron - 1] += 0  # not masked
    assert reads(lambda: handle.verify()) > 0
    assert reads(lambda: handle.verify()) == 0
    weight.data = weight.data.clone()
    assert reads(lambda: handle.verify()) > 0
    other.weight = torch.nn.Parameter(other.weight.clone())
    assert reads(lambda: handle.verify()) > 0
    second = guard(transformer, BLADES, store=store)
    assert reads(lambda: handle.verify()) > 0  # it shares tensors with the second
    assert second.verify().ok
    assert reads(lambda: (handle.verify(), second.verify())) == 0
    assert reads(lambda: handle.verify(deep=True)) > 0
    assert handle.verify().ok


@pytest.fixture
def reads():
    """Count the torch operations of a call: a look that compares objects alone has none.

    By torch's profiler, since a mode that is entered is one of the things that are looked at.
    """

    def count(call):
        with torch.autograd.profiler.profile() as found:
            call()
        return sum(event.name.startswith("aten::") for event in found.function_events)

    return count


def test_loading_the_base_again_is_found_and_can_be_guarded_anew(transformer, base_transformer, store, bits_of):
    old = guard(transformer, BOTH, store=store)
    transformer.load_state_dict(base_transformer.state_dict())
    assert old.verify().state is State.DEGRADED
    new = guard(transformer, BOTH, store=store)
    assert new.verify().ok
    assert old.verify().state is not State.GUARDED
    new.undo()
    assert bits_of(transformer) == bits_of(base_transformer)


def test_the_base_loaded_again_can_be_refreshed_and_undone(transformer, base_transformer, store, bits_of):
    handle = guard(transformer, BOTH, store=store)
    masked = bits_of(transformer)
    for _ in range(2):
        transformer.load_state_dict(base_transformer.state_dict())
        assert handle.verify().state is State.DEGRADED
        handle.refresh()
        assert handle.verify(deep=True).ok
        assert bits_of(transformer) == masked
    handle.undo()
    assert bits_of(transformer) == bits_of(base_transformer)
    with pytest.raises(ApplyError, match="nothing to refresh"):
        handle.refresh()


def test_replaced_tensors_are_found_even_when_they_are_zero_where_masked(transformer, base_transformer, store):
    handle = guard(transformer, BOTH, store=store)
    copied = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    transformer.load_state_dict(copied, assign=True)
    found = handle.verify()
    assert found.state is State.STALE
    assert "replaced by another tensor" in found.faults[0]
    transformer.load_state_dict(base_transformer.state_dict(), assign=True)
    assert handle.verify().state is State.DEGRADED


def test_another_transformer_in_the_pipeline_is_found(pipe, other_transformer, store):
    handle = guard(pipe, BOTH, store=store)
    guarded, pipe.transformer = pipe.transformer, other_transformer
    assert handle.verify().state is State.DEGRADED
    assert "another transformer" in handle.verify().faults[0]
    pipe.transformer = guarded
    assert handle.verify().ok


def test_two_pipelines_with_one_transformer_have_one_guard(pipe, store, bits_of):
    before = bits_of(pipe.transformer)
    other = FluxImg2ImgPipeline.from_pipe(pipe)
    first, second = guard(pipe, BLADES, store=store), guard(other, BLADES, store=store)
    assert first.verify().ok
    assert second.verify().ok
    on_top = guard(other, SPIRITS, store=store)
    with pytest.raises(ApplyError, match="undo 'spirits-only' first"):
        first.undo()
    assert first.verify(deep=True).ok
    on_top.undo()
    second.undo()
    assert first.verify().state is State.UNGUARDED
    assert bits_of(pipe.transformer) == before


def test_a_pipeline_made_from_another_casts_what_they_share(pipe, store, bits_of):
    pipe.transformer.to(torch.bfloat16)
    before = bits_of(pipe.transformer)
    handle = guard(pipe, BOTH, store=store)
    FluxImg2ImgPipeline.from_pipe(pipe)
    assert pipe.transformer.dtype is torch.float32
    assert handle.verify(deep=True).ok
    with pytest.raises(ApplyError, match=r"was cast from torch\.bfloat16"):
        handle.undo()
    pipe.transformer.to(torch.bfloat16)
    handle.undo()
    assert bits_of(pipe.transformer) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch, when its compiler is first imported
def test_compiling_after_the_guard_is_fine(pipe, store):
    handle = guard(pipe, BOTH, store=store)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert handle.verify().ok


def test_the_repr_shows_the_state(transformer, store):
    handle = guard(transformer, BLADES, store=store)
    assert repr(handle) == "GuardHandle(policy='blades-only', state=GUARDED)"
