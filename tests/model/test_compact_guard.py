"""`guard(..., compact=True)`: masked neurons are gone, what cannot go is zero, and both are verified."""

import copy

import pytest
import torch

from safeflux.convert.load_compact import load_compact
from safeflux.errors import ApplyError, MaskMismatchError
from safeflux.model.guard import guard
from safeflux.plan.status import State
from tests.helpers.policies import BLADES, BOTH, SPIRITS


@pytest.fixture
def compacted(pipe, heavy_store):
    return pipe, guard(pipe, BOTH, store=heavy_store, compact=True)


def test_it_draws_as_the_masked_model_does_and_is_smaller(compacted, base_transformer, heavy_store, forward):
    pipe, handle = compacted
    masked = copy.deepcopy(base_transformer)
    guard(masked, BOTH, store=heavy_store)
    torch.testing.assert_close(forward(pipe.transformer), forward(masked))
    assert pipe.transformer.num_parameters() < masked.num_parameters()
    assert handle.verify(deep=True).state is State.GUARDED
    assert handle.verify().state is State.GUARDED
    assert all(amount.requested == amount.in_force > 0 for amount in handle.status.sites.values())
    assert all(each.bits.requested == each.bits.in_force > 0 for each in handle.status.categories.values())
    assert handle.receipt()["state"] == "GUARDED"


def test_there_is_no_way_back_and_leaving_the_context_is_none(compacted, heavy_store, bits_of):
    pipe, handle = compacted
    before = bits_of(pipe.transformer)
    with pytest.raises(ApplyError, match=r"cannot undo: neurons were cut out .*load the model again"):
        handle.undo()
    with pytest.raises(ApplyError, match=r"cannot swap: neurons were cut out"):
        handle.swap(BLADES, store=heavy_store)
    with handle:
        pass
    assert bits_of(pipe.transformer) == before
    assert handle.verify(deep=True).state is State.GUARDED
    assert handle.num_bytes_saved == 0


def test_the_same_policy_changes_nothing_and_another_is_refused(compacted, heavy_store, bits_of):
    pipe, handle = compacted
    before = bits_of(pipe.transformer)
    again = guard(pipe, BOTH, store=heavy_store, compact=True)
    assert again.verify().state is State.GUARDED
    for compact in (True, False):
        with pytest.raises((ApplyError, MaskMismatchError)):
            guard(pipe, SPIRITS, store=heavy_store, compact=compact)
    assert bits_of(pipe.transformer) == before
    assert handle.verify(deep=True).state is State.GUARDED


def test_a_model_that_is_guarded_already_is_not_compacted(pipe, heavy_store, bits_of):
    guard(pipe, BLADES, store=heavy_store)
    before = bits_of(pipe.transformer)
    with pytest.raises(ApplyError, match=r"is in force on this model.*Undo it"):
        guard(pipe, SPIRITS, store=heavy_store, compact=True)
    assert bits_of(pipe.transformer) == before


def test_what_is_on_again_is_found_and_refreshed(compacted):
    pipe, handle = compacted
    with torch.no_grad():
        masked = torch.from_numpy(~handle.plan.masks["context_embedder:weight"])
        pipe.transformer.context_embedder.weight[masked] = 1
    found = handle.verify()
    assert found.state is State.DEGRADED
    assert "context_embedder.weight" in found.faults[0]
    site = handle.status.sites["context_embedder:weight"]
    assert site.in_force == 0 < site.requested
    handle.refresh()
    assert handle.verify(deep=True).state is State.GUARDED


def test_a_feed_forward_that_has_its_neurons_again_is_found(compacted, base_transformer):
    pipe, handle = compacted
    name = "transformer_blocks.0.ff"
    pipe.transformer.transformer_blocks[0].ff = copy.deepcopy(base_transformer.transformer_blocks[0].ff)
    found = handle.verify()
    assert found.state is State.DEGRADED
    assert any(f"'{name}:ff' was cut to (64,) and has (128,)" in fault for fault in found.faults)
    assert handle.status.sites[f"{name}:ff"].in_force == 0


def test_what_is_saved_is_loaded_as_it_was(compacted, tmp_path, bits_of):
    pipe, _ = compacted
    pipe.transformer.save_pretrained(tmp_path / "small")
    assert bits_of(load_compact(tmp_path / "small")) == bits_of(pipe.transformer)


def test_a_dry_run_cuts_nothing(pipe, heavy_store, bits_of):
    before = bits_of(pipe.transformer)
    assert guard(pipe, BOTH, store=heavy_store, compact=True, dry_run=True).verify().state is State.UNGUARDED
    assert bits_of(pipe.transformer) == before
