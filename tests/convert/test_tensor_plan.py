"""Policies for the tensors that other stacks hold: as files are baked, and refused as a guard refuses."""

import json

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from safetensors.torch import load_file

from safeflux.baking.bake import bake
from safeflux.checkpoints.checkpoint import Checkpoint
from safeflux.convert.tensor_plan import PackedTensor, plan_tensors
from safeflux.errors import MaskMismatchError, ModelError, PolicyError
from safeflux.plan.status import State
from safeflux.policy.schema import Budget
from tests.helpers.ggufs import write_gguf
from tests.helpers.layouts import to_bfl
from tests.helpers.policies import BLADES, BOTH, SPIRITS


@pytest.fixture(scope="module")
def bfl_weights(base_transformer):
    return to_bfl(base_transformer)


def test_it_switches_off_what_baking_does_in_any_layout_and_dtype(base_transformer, bfl_weights, bfl, store, tmp_path):
    bake(bfl, tmp_path / "baked.safetensors", BOTH, store=store)
    baked = load_file(tmp_path / "baked.safetensors")
    plan = plan_tensors(bfl_weights, BOTH, store=store)
    assert set(plan.names) == {name for name in baked if not torch.equal(baked[name], bfl_weights[name])}
    for name in plan.names:
        for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
            copy = bfl_weights[name].to(dtype, copy=True)
            assert not plan.is_off(name, copy)
            assert plan.fill_(name, copy) is copy
            assert plan.is_off(name, copy)
            assert torch.equal(copy.float(), baked[name].to(dtype).float())
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in bfl_weights.items()}
    assert plan_tensors(prefixed | {"vae.x": torch.ones(1)}, BOTH, store=store).names == tuple(
        f"model.diffusion_model.{name}" for name in plan.names
    )
    theirs = plan_tensors(dict(base_transformer.named_parameters()), BOTH, store=store)
    assert theirs.plan.masks.count == plan.plan.masks.count


def test_the_status_is_what_is_read(bfl_weights, store):
    plan = plan_tensors(bfl_weights, BOTH, store=store)
    off = {name: plan.fill_(name, bfl_weights[name].clone()) for name in plan.names}
    status = plan.status(off.__getitem__)
    assert (status.state, status.faults) == (State.GUARDED, ())
    assert plan.status(off.__getitem__, unknown=["who knows"]).state is State.STALE
    assert plan.status(off.__getitem__, broken=["a LoRA"]).faults == ("a LoRA",)
    off["txt_in.weight"] = bfl_weights["txt_in.weight"]
    status = plan.status(off.__getitem__, unknown=["who knows"])
    site = status.sites["context_embedder:weight"]
    assert (status.state, site.in_force) == (State.DEGRADED, 0)
    assert site.requested > 0
    assert status.faults[0].startswith(f"tensor 'txt_in.weight': {site.requested} masked rows, columns or elements")
    about = {"class": "Flux", "dtypes": ["float32"], "devices": ["cpu"]}
    receipt = plan.receipt(status, base=about, adapters={}, held={"memory": 3}, versions={"stack": "1.2"})
    assert json.loads(json.dumps(receipt))["base"] == about | {"family": "flux1", "fingerprint": plan.plan.base}
    assert (receipt["state"], receipt["versions"]["stack"]) == ("DEGRADED", "1.2")


def test_bad_input_is_refused(bfl_weights, other_transformer, store):
    with pytest.raises(MaskMismatchError, match="was trained for other base weights"):
        plan_tensors(to_bfl(other_transformer), BOTH, store=store)
    with pytest.raises(ModelError, match="not a FLUX model"):
        plan_tensors({"a.weight": torch.ones(2, 2)}, BOTH, store=store)
    with pytest.raises(ModelError, match=r"'txt_in\.weight' holds no values"):
        plan_tensors(bfl_weights | {"txt_in.weight": bfl_weights["txt_in.weight"].to("meta")}, BOTH, store=store)
    first = plan_tensors(bfl_weights, BLADES, store=store)
    share = plan_tensors(bfl_weights, SPIRITS, store=store).plan.shares
    limit = max(count.share for count in share.values())
    tight = SPIRITS.model_copy(update={"budget": Budget(max_share_masked=limit)})
    assert plan_tensors(bfl_weights, tight, store=store).names
    second = plan_tensors(bfl_weights, tight, store=store, standing=[first])
    assert second.plan.standing == (first.plan,)
    with pytest.raises(PolicyError, match="max_share_masked"):
        plan_tensors(bfl_weights, BLADES.model_copy(update={"budget": Budget(max_share_masked=0.001)}), store=store)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_blocks_of_gguf_are_recognised_as_in_the_file(bfl_weights, store, tmp_path, kind):
    path = write_gguf(tmp_path / "flux.gguf", bfl_weights, GGMLQuantizationType[kind])
    tensors = {}
    for one in GGUFReader(path).tensors:
        shape, data = tuple(int(n) for n in reversed(one.shape)), torch.from_numpy(one.data.copy())
        is_plain = one.tensor_type.name in ("F32", "F16")
        tensors[one.name] = data.view(shape) if is_plain else PackedTensor(data, one.tensor_type.name, shape)
    assert plan_tensors(tensors, BOTH, store=store).plan.base == Checkpoint.open(path).fingerprint
    name = next(name for name, tensor in tensors.items() if isinstance(tensor, PackedTensor))
    with pytest.raises(ModelError, match="cannot read numbers of the type 'Q9_X'"):
        plan_tensors(tensors | {name: PackedTensor(tensors[name].data, "Q9_X", tensors[name].shape)}, BOTH, store=store)
