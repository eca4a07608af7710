"""Adapters of LyCORIS, the real package: forwards of its own in the place of the layers', or merged into weights."""

import logging
import warnings

import pytest
import torch

from safeflux.errors import ApplyError, MaskMismatchError, ModelError
from safeflux.model.guard import guard
from safeflux.plan.status import State
from tests.helpers.lora import ALLOW
from tests.helpers.policies import BOTH, SPIRITS

UNMASKED = [".*attn.to_q", ".*attn.to_k"]
MASKED = [".*add_k_proj", "context_embedder", ".*ff_context.net.2"]
KINDS = pytest.mark.parametrize("kind", ["loha", "lokr"])


@pytest.fixture(scope="module")
def lycoris():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("lycoris", reason="needs LyCORIS (pip install lycoris-lora)")
    package.logging.logger.setLevel(logging.ERROR)
    return package


@pytest.fixture
def adapt(lycoris, monkeypatch):
    """Make an adapter for some layers of a model; its owner then applies or merges it."""

    def make(model, kind, layers):
        torch.manual_seed(0)
        preset = {"enable_conv": False, "target_module": [], "target_name": layers}
        monkeypatch.setitem(lycoris.config.PRESET, "of the test", preset)
        network = lycoris.create_lycoris(model, 1.0, linear_dim=2, linear_alpha=1, algo=kind, preset="of the test")
        assert len(network.loras) > 4
        for parameter in (each for lora in network.loras for each in lora.parameters()):
            torch.nn.init.normal_(parameter, std=0.3)
        return network

    return make


@KINDS
@pytest.mark.parametrize("layers", [UNMASKED, MASKED], ids=["unmasked", "masked"])
@pytest.mark.parametrize("policy", [BOTH, ALLOW], ids=["deny", "allow"])
def test_applied_before_or_after_it_is_stale_by_name(transformer, store, forward, bits_of, adapt, kind, layers, policy):
    handle = guard(transformer, policy, store=store)
    masked, bits = forward(transformer), bits_of(transformer)
    network = adapt(transformer, kind, layers)
    network.apply_to()
    assert not torch.equal(forward(transformer), masked)
    for found in (handle.verify(), handle.verify(deep=True)):
        assert found.state is State.STALE
        assert f"lycoris.modules.{kind}" in found.faults[0]
    handle.swap(SPIRITS, store=store)
    handle.undo()
    handle = guard(transformer, policy, store=store)  # over it
    assert handle.verify().state is State.STALE
    network.restore()
    assert handle.verify().ok
    assert handle.verify(deep=True).ok
    assert torch.equal(forward(transformer), masked)
    assert bits_of(transformer) == bits


@KINDS
def test_merged_into_masked_layers_it_is_found_and_masked_again(transformer, store, bits_of, adapt, kind):
    handle = guard(transformer, ALLOW, store=store)
    assert handle.verify().ok
    adapt(transformer, kind, MASKED).merge_to(1.0)
    assert handle.verify().ok  # it writes through `Tensor.data`
    found = handle.verify(deep=True)
    assert found.state is State.DEGRADED
    assert "context_embedder.weight' is not zero" in found.faults[0]
    with pytest.raises(ApplyError, match="cannot swap"):
        handle.swap(SPIRITS, store=store)
    merged = bits_of(transformer)
    handle.refresh()
    assert handle.verify(deep=True).ok
    assert bits_of(transformer) != merged
    handle.undo()
    assert torch.count_nonzero(transformer.context_embedder.weight) == transformer.context_embedder.weight.numel()


@KINDS
def test_merged_and_gone_it_breaks_a_policy_that_lets_no_adapter_in(transformer, store, adapt, kind):
    handle = guard(transformer, BOTH, store=store)
    adapt(transformer, kind, UNMASKED).merge_to(1.0)
    found = handle.verify(deep=True)
    assert found.state is State.DEGRADED
    assert "not masked have changed" in found.faults[0]
    handle.undo()
    with pytest.raises(MaskMismatchError, match=r"made for|trained for|another base"):
        guard(transformer, BOTH, store=store)


def test_a_parametrized_weight_is_stale_and_refused(transformer, store, lycoris, bits_of):
    handle = guard(transformer, ALLOW, store=store)
    lycoris.modules.loha.LohaModule.parametrize(transformer.context_embedder, "weight", 1.0, lora_dim=2, alpha=1)
    bits = bits_of(transformer)
    assert handle.verify().state is State.STALE
    writes = (handle.undo, handle.refresh, lambda: handle.swap(SPIRITS, store=store))
    for write in (*writes, lambda: guard(transformer, BOTH, store=store)):
        with pytest.raises((ApplyError, ModelError), match="context_embedder"):
            write()
    assert bits_of(transformer) == bits
