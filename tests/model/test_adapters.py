"""Guards and adapters, with the real PEFT: loaded before and after, taken out again, swapped, listed by sha256."""

import copy
import hashlib

import pytest
import torch
from peft import LoHaConfig, LoKrConfig
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from safeflux.errors import ApplyError, ModelError
from safeflux.model.guard import guard
from safeflux.plan.status import State
from safeflux.policy.load import Adapters, Policy
from tests.helpers.lora import ALLOW, MASKED, QUIET, UNMASKED, lora
from tests.helpers.policies import BOTH

pytestmark = QUIET


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
    "config",
    [lora(), lora(use_dora=True), LoHaConfig(r=2, target_modules=MASKED), LoKrConfig(r=2, target_modules=MASKED)],
    ids=["lora", "dora", "loha", "lokr"],
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


@pytest.mark.parametrize(
    "config",
    [
        lora(UNMASKED, use_dora=True),
        LoHaConfig(r=2, target_modules=UNMASKED, init_weights=False),
        LoKrConfig(r=2, target_modules=UNMASKED, init_weights=False),
    ],
    ids=["dora", "loha", "lokr"],
)
def test_other_kinds_of_adapters_off_the_masked_layers_are_the_policys_choice_too(transformer, store, config):
    loaded = copy.deepcopy(transformer)
    loaded.add_adapter(config)
    with pytest.raises(ModelError, match="adapters: deny"):
        guard(loaded, BOTH, store=store)
    assert guard(loaded, ALLOW, store=store).verify(deep=True).ok
    other = copy.deepcopy(transformer)
    strict = guard(other, BOTH, store=store)
    other.add_adapter(config)
    assert strict.verify().state is State.DEGRADED
    handle = guard(transformer, ALLOW, store=store)
    transformer.add_adapter(config)
    for step in (transformer.fuse_lora, transformer.unfuse_lora, transformer.unload_lora):
        assert handle.verify(deep=True).ok
        step()
    assert handle.verify(deep=True).ok


def tensors_of(transformer, layers, seed):
    """What a file of an adapter for these layers would hold."""
    model = copy.deepcopy(transformer)
    torch.manual_seed(seed)
    model.add_adapter(lora(layers), adapter_name="style")
    return get_peft_model_state_dict(model, adapter_name="style")


def test_an_adapter_hot_swapped_before_the_guard_is_judged_as_it_is(transformer, store, listed):
    path, policy = listed
    load(transformer, tensors_of(transformer, UNMASKED, 1))
    with pytest.raises(ModelError, match="of no file that was let in"):
        guard(transformer, policy, store=store, adapters=[path])
    load(transformer, load_file(path), hotswap=True)
    handle = guard(transformer, policy, store=store, adapters=[path])
    assert handle.verify(deep=True).ok
    with pytest.raises(ModelError, match="adapters: deny"):
        guard(transformer, BOTH, store=store)


def test_hot_swapped_on_masked_layers_is_refused_before_the_guard(transformer, store, bits_of):
    first, second = (tensors_of(transformer, MASKED, seed) for seed in (1, 2))
    load(transformer, first)
    load(transformer, second, hotswap=True)
    before = bits_of(transformer)
    with pytest.raises(ModelError, match="adapter style adds to masked"):
        guard(transformer, ALLOW, store=store)
    assert bits_of(transformer) == before


def test_an_adapter_that_was_padded_for_hot_swaps_is_of_no_listed_file(transformer, store, listed):
    path, policy = listed
    transformer.enable_lora_hotswap(target_rank=4)
    load(transformer, load_file(path))
    with pytest.raises(ModelError, match="of no file that was let in"):
        guard(transformer, policy, store=store, adapters=[path])
    assert guard(transformer, ALLOW, store=store).verify(deep=True).ok


def test_a_listed_file_whose_tensors_were_moved_to_other_layers_is_another_one(transformer, store, listed):
    path, policy = listed
    handle = guard(transformer, policy, store=store, adapters=[path])
    tensors = load_file(path)
    names = sorted(name for name in tensors if "to_q.lora_A" in name)
    assert len(names) > 1
    moved = {
        name: tensors[names[(names.index(name) + 1) % len(names)]] if name in names else tensors[name]
        for name in tensors
    }
    load(transformer, moved)
    found = handle.verify()
    assert found.state is State.DEGRADED
    assert f"carries {len(names)} adapter tensors" in found.faults[0]


def test_the_receipt_reports_the_scale_of_each_adapter(transformer, store, listed):
    path, policy = listed
    handle = guard(transformer, policy, store=store, adapters=[path])
    load(transformer, load_file(path))
    transformer.set_adapters(["style"], [-20.0])
    layers = handle.receipt()["adapters"].values()
    assert handle.verify(deep=True).ok
    scale = transformer.transformer_blocks[0].attn.to_q.scaling["style"]
    assert scale <= -20.0
    assert {layer["scales"]["style"] for layer in layers} == {scale}


@pytest.mark.parametrize("adapters", [Adapters.ALLOWLIST, Adapters.ALLOW])
def test_a_policy_bounds_the_scale_of_adapters(transformer, store, listed, adapters):
    path, policy = listed
    listing = {} if adapters is Adapters.ALLOWLIST else {"adapter_allowlist": ()}
    bound = policy.model_copy(update={"adapters": adapters, "adapter_max_scale": 4.0, **listing})
    handle = guard(transformer, bound, store=store, adapters=[path] if adapters is Adapters.ALLOWLIST else [])
    load(transformer, load_file(path))
    own = transformer.transformer_blocks[0].attn.to_q.scaling["style"]
    for weight, state in ((4 / own, State.GUARDED), (-4.1 / own, State.DEGRADED), (1.0, State.GUARDED)):
        transformer.set_adapters(["style"], [weight])
        assert handle.verify().state is state
        assert handle.verify(deep=True).state is state
    transformer.set_adapters(["style"], [-20.0])
    assert "adapter_max_scale: 4`, and adapter style has -" in handle.verify().faults[0]
    transformer.fuse_lora()
    assert handle.verify().state is State.DEGRADED
    handle.undo()
    with pytest.raises(ModelError, match=r"adapter_max_scale: 4.*set_adapters"):
        guard(transformer, bound, store=store, adapters=[path] if adapters is Adapters.ALLOWLIST else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_listed_adapter_may_be_fused_and_taken_out_and_an_unknown_one_leaves_a_trace(
    transformer, store, listed, dtype
):
    path, policy = listed
    transformer.to(dtype)
    handle = guard(transformer, policy, store=store, adapters=[path])
    load(transformer, load_file(path))
    for step in (transformer.fuse_lora, transformer.unfuse_lora, transformer.unload_lora):
        assert handle.verify(deep=True).ok
        step()
    assert handle.verify(deep=True).ok  # what taking it out rounds is no change
    transformer.add_adapter(lora(UNMASKED), adapter_name="unknown")
    transformer.fuse_lora()
    transformer.unload_lora()
    found = handle.verify(deep=True)  # every part is back in its place, and PEFT wrote through `.data`
    assert found.state is State.DEGRADED
    assert "not masked have changed" in found.faults[0]
