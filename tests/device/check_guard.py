"""Guards of a model that is on a device, or moved there and back."""

import copy

import pytest
import torch
from diffusers.hooks import apply_layerwise_casting

from safeflux.convert.load_compact import load_compact
from safeflux.errors import MaskMismatchError
from safeflux.model.guard import guard
from safeflux.model.weights import fingerprint
from safeflux.plan.status import State
from tests.helpers.lora import ALLOW, QUIET, lora
from tests.helpers.policies import BLADES, BOTH

pytestmark = QUIET


def where(model):
    return {parameter.device.type for parameter in model.parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_that_a_handle_does(transformer, store, drawn, device, bits_of, dtype):
    transformer.to(dtype)
    plain, fingerprints = bits_of(transformer), [fingerprint(transformer)]
    transformer.to(device)
    fingerprints.append(fingerprint(transformer))
    assert len(set(fingerprints)) == 1
    pointers = [parameter.data_ptr() for parameter in transformer.parameters()]
    base = transformer.context_embedder.weight.detach().clone()
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    assert handle.verify(deep=True).ok
    assert handle.status.state is State.GUARDED
    assert handle.receipt()["held"].keys() == {"memory"}
    both = drawn(transformer)
    handle.swap(BLADES, store=store)
    blades = drawn(transformer)
    assert handle.verify(deep=True).ok
    handle.swap(BOTH, store=store)
    assert torch.equal(drawn(transformer), both)
    with torch.no_grad():
        transformer.context_embedder.weight.copy_(base)
    assert handle.verify().state is State.DEGRADED
    handle.refresh()
    assert handle.verify().ok
    handle.undo()
    assert where(transformer) == {device.type}
    assert pointers == [parameter.data_ptr() for parameter in transformer.parameters()]
    assert not torch.equal(both, blades)
    assert not torch.equal(blades, drawn(transformer))
    with torch.no_grad():
        again = bits_of(transformer.to("cpu"))
    assert {name: bits for name, bits in again.items() if name != "context_embedder.weight"} == {
        name: bits for name, bits in plain.items() if name != "context_embedder.weight"
    }


def test_moved_there_and_back(transformer, store, drawn, device, bits_of, expected):
    plain = bits_of(transformer)
    handle = guard(transformer, BOTH, store=store)
    transformer.to(device)
    assert handle.verify().ok
    torch.testing.assert_close(drawn(transformer), expected["both"])
    handle.swap(BLADES, store=store)  # what was saved is on the CPU, what is written on the device
    torch.testing.assert_close(drawn(transformer), expected["blades-only"])
    transformer.to("cpu")
    assert handle.verify(deep=True).ok
    handle.undo()
    assert bits_of(transformer) == plain


def test_guarded_there_and_undone_on_the_cpu(transformer, store, device, bits_of):
    plain = bits_of(transformer)
    handle = guard(transformer.to(device), BOTH, store=store)
    assert handle.verify().ok
    transformer.to("cpu")
    assert handle.verify().ok
    handle.undo()
    assert bits_of(transformer) == plain


def test_cast_there(transformer, store, device):
    handle = guard(transformer.to(device), BOTH, store=store)
    transformer.to(torch.bfloat16)
    assert handle.verify(deep=True).ok


@pytest.mark.parametrize("is_first", [True, False])
def test_layerwise_casting(transformer, store, drawn, device, is_first):
    transformer.to(device)
    handles = [guard(transformer, BOTH, store=store)] if is_first else []
    apply_layerwise_casting(transformer, storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    handles = handles or [guard(transformer, BOTH, store=store)]
    drawn(transformer)
    assert handles[0].verify(deep=True).ok


def test_adapters(transformer, store, drawn, device, expected):
    handle = guard(transformer.to(device), ALLOW, store=store)
    transformer.add_adapter(lora(), adapter_name="painter")
    assert handle.verify().state is State.DEGRADED
    transformer.fuse_lora()
    handle.refresh()
    assert handle.verify(deep=True).ok
    transformer.unfuse_lora()
    transformer.unload_lora()
    handle.refresh()
    handle.undo()
    torch.testing.assert_close(drawn(transformer), expected["plain"], atol=1e-4, rtol=1e-4)


def test_neurons_cut_out(transformer, store, drawn, device, expected, tmp_path):
    handle = guard(transformer.to(device), BOTH, store=store, compact=True)
    assert handle.verify(deep=True).ok
    assert where(transformer) == {device.type}
    torch.testing.assert_close(drawn(transformer), expected["both"])
    transformer.save_pretrained(tmp_path)
    torch.testing.assert_close(drawn(load_compact(tmp_path).to(device)), expected["both"])


def test_copies_and_files(transformer, store, drawn, device, expected, tmp_path):
    guard(transformer.to(device), BOTH, store=store)
    torch.testing.assert_close(drawn(copy.deepcopy(transformer)), expected["both"])
    transformer.save_pretrained(tmp_path)
    torch.testing.assert_close(drawn(type(transformer).from_pretrained(tmp_path).to(device)), expected["both"])


def test_another_base_is_refused(other_transformer, store, device):
    with pytest.raises(MaskMismatchError, match="other base weights"):
        guard(other_transformer.to(device), BOTH, store=store)
