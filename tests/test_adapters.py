"""Guards and adapters, with the real PEFT: loaded before and after, fused, taken out again, listed by sha256."""

import copy
import hashlib

import pytest
import torch
from peft import LoHaConfig, LoraConfig
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from safeflux.errors import ApplyError, MaskMismatchError, ModelError
from safeflux.guard import guard
from safeflux.policy import Adapters, Policy
from safeflux.status import State
from safeflux.writes import as_bits
from tests.policies import BLADES, BOTH

pytestmark = [
    pytest.mark.filterwarnings("ignore:There are modules"),  # diffusers, of a cast
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),  # PEFT, of a second adapter
    pytest.mark.filterwarnings("ignore:Adapter unknown was active"),
]
UNMASKED = ["to_q", "to_k"]
MASKED = ["to_q", "add_k_proj", "context_embedder", "ff_context.net.2", "proj_mlp"]
"""Layers that the masks of the tests do not touch, and some that they do."""
ALLOW = Policy(name="allow", adapters=Adapters.ALLOW, categories=BOTH.categories)


def lora(layers=MASKED, **options):
    return LoraConfig(r=2, target_modules=layers, init_lora_weights=False, **options)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_adapters_off_the_masked_layers_are_the_policys_choice(transformer, store):
    loaded = copy.deepcopy(transformer)
    loaded.add_adapter(lora(UNMASKED))
    with pytest.raises(ModelError, match=r"adapters: deny.*to_k.lora_A.default.weight'. Unload the adapters"):
        guard(loaded, BOTH, store=store)
    assert guard(loaded, ALLOW, store=store).verify(deep=True).ok

    strict = guard(transformer, BOTH, store=store)
    transformer.add_adapter(lora(UNMASKED))
    found = strict.verify()
    assert found.state is State.DEGRADED
    assert "adapters: deny" in found.faults[0]
    transformer.unload_lora()
    assert strict.verify(deep=True).ok


def test_an_allowed_adapter_off_the_masked_layers_may_come_go_and_be_fused(transformer, store):
    handle = guard(transformer, ALLOW, store=store)
    steps = (
        lambda: transformer.add_adapter(lora(UNMASKED), adapter_name="one"),
        lambda: transformer.add_adapter(lora(UNMASKED), adapter_name="two"),
        lambda: transformer.set_adapters(["one", "two"], [0.5, 2.0]),
        lambda: transformer.fuse_lora(adapter_names=["one"]),
        lambda: transformer.unfuse_lora(),
        lambda: transformer.delete_adapters("one"),
        lambda: transformer.disable_adapters(),
        lambda: transformer.unload_lora(),
    )
    for step in steps:
        step()
        assert handle.verify().ok
        assert handle.verify(deep=True).ok


@pytest.mark.parametrize(
    "config", [lora(), lora(use_dora=True), LoHaConfig(r=2, target_modules=MASKED)], ids=["lora", "dora", "loha"]
)
def test_adapters_on_masked_layers_are_refused_before_and_found_after(transformer, store, bits_of, config):
    with_adapter = copy.deepcopy(transformer)
    with_adapter.add_adapter(config)
    before = bits_of(with_adapter)
    with pytest.raises(ModelError, match=r"adapter default adds to masked.*unload it, guard, load it, `pipe.fuse_lora"):
        guard(with_adapter, ALLOW, store=store)
    assert bits_of(with_adapter) == before
    handle = guard(transformer, ALLOW, store=store)
    transformer.add_adapter(config)
    found = handle.verify()
    assert found.state is State.DEGRADED
    assert {"context_embedder.weight", "transformer_blocks.0.attn.add_k_proj.weight"} <= {
        fault.split("'")[1] for fault in found.faults
    }
    assert all("Fuse it" in fault for fault in found.faults)
    transformer.disable_adapters()  # one call switches it on again
    assert handle.verify().state is State.DEGRADED


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
    assert handle.receipt()["adapters"]["context_embedder"] == {"adapters": ["default"], "fused": ["default"]}
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


def test_fusing_and_unloading_leaves_a_trace_that_a_policy_without_adapters_sees(transformer, store):
    handle = guard(transformer, BOTH, store=store)
    transformer.add_adapter(lora(UNMASKED))
    transformer.fuse_lora()
    transformer.unload_lora()
    assert handle.verify().ok  # nothing that is masked was touched
    found = handle.verify(deep=True)
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
    with pytest.raises(MaskMismatchError, match="model with merged adapters"):
        guard(transformer, ALLOW, store=store)
    assert bits_of(transformer) == before


@pytest.fixture
def listed(transformer, tmp_path):
    """A file of an adapter, its sha256, and the policy that lists it."""
    model = copy.deepcopy(transformer)
    model.add_adapter(lora(UNMASKED), adapter_name="style")
    path = tmp_path / "style.safetensors"
    save_file(get_peft_model_state_dict(model, adapter_name="style"), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return path, Policy(
        name="listed", adapters=Adapters.ALLOWLIST, adapter_allowlist=(sha256,), categories=BOTH.categories
    )


def load(model, tensors, **options):
    """As a pipeline's `load_lora_weights` does."""
    model.load_lora_adapter({f"transformer.{k}": v for k, v in tensors.items()}, adapter_name="style", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_listed_adapter_is_let_in_and_no_other(transformer, store, listed, dtype, tmp_path):
    path, policy = listed
    transformer.to(dtype)
    handle = guard(transformer, policy, store=store)
    load(transformer, load_file(path))
    assert "of no file that was let in" in handle.verify().faults[0]
    handle.admit(path)
    assert handle.verify(deep=True).ok
    handle.swap(policy.model_copy(update={"name": "other"}), store=store)
    assert handle.verify().ok
    with pytest.raises(ModelError, match="of no file that was let in"):  # the old policy listed it
        handle.swap(policy.model_copy(update={"adapter_allowlist": ("0" * 64,)}), store=store)
    transformer.add_adapter(lora(UNMASKED), adapter_name="unknown")
    assert handle.verify().state is State.DEGRADED
    transformer.delete_adapters("unknown")
    assert handle.verify().ok
    other = tmp_path / "other.safetensors"
    other.write_bytes(path.read_bytes() + b" ")
    for bad, message in ((other, "not on the adapter_allowlist of the policy 'other'"), (tmp_path / "no", "cannot be")):
        with pytest.raises(ModelError, match=message):
            handle.admit(bad)
    with pytest.raises(ApplyError, match="nothing to let in"):
        guard(transformer, policy, store=store, adapters=[path], dry_run=True).admit(path)


def test_a_listed_adapter_may_be_there_before_the_guard(transformer, store, listed):
    path, policy = listed
    load(transformer, load_file(path))
    with pytest.raises(ModelError, match=r"adapters: allowlist.*guard\(\.\.\., adapters"):
        guard(transformer, policy, store=store)
    handle = guard(transformer, policy, store=store, adapters=[path])
    assert handle.verify().ok


def test_a_hot_swapped_adapter_is_another_one(transformer, store, listed):
    path, policy = listed
    handle = guard(transformer, policy, store=store, adapters=[path])
    load(transformer, load_file(path))
    assert handle.verify(deep=True).ok
    other = {name: tensor + 0.1 for name, tensor in load_file(path).items()}
    load(transformer, other, hotswap=True)
    assert handle.verify(deep=True).state is State.DEGRADED
