"""The node pack in a real ComfyUI: what it draws, what other nodes do to it, and what stays as it was."""

import json

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file

import safeflux
from safeflux.policy.load import Adapters
from tests.comfyui.conftest import node
from tests.helpers.ggufs import write_gguf
from tests.helpers.layouts import to_bfl
from tests.helpers.policies import BLADES, BOTH, SPIRITS

pytestmark = [pytest.mark.comfyui, pytest.mark.filterwarnings("ignore")]
ALLOW = BOTH.model_copy(update={"name": "lax", "adapters": Adapters.ALLOW})


@pytest.fixture
def guard(engine, masks):
    """Run the guard's node under a policy of the tests."""

    def run(model, policy=BOTH):
        categories = {name: {"masks": list(each.masks)} for name, each in policy.categories.items()}
        content = {"apiVersion": "safeflux/v1", "kind": "Policy", "name": policy.name, "categories": categories}
        listed = {"adapter_allowlist": list(policy.adapter_allowlist)} if policy.adapter_allowlist else {}
        content |= {"adapters": str(policy.adapters), **listed}
        place = engine.base / "models" / "safeflux" / f"{policy.name}.yaml"
        place.write_text(json.dumps(content), encoding="utf-8")
        return node(engine, "SafeFluxGuard", model, place.name, masks)[0]

    return run


@pytest.fixture
def add_lora(engine, lora):
    """Put a LoRA on a model by the engine's node, on all of its matrices."""
    return lambda model, strength=1.0: node(engine, "LoraLoaderModelOnly", model, lora, strength)[0]


@pytest.fixture
def by_hand(engine, base_transformer, bfl, store, lora):
    """The small FLUX with the LoRA in its weights and then the masks, in plain torch."""
    weights, plan = to_bfl(base_transformer), safeflux.plan_tensors(load_file(bfl), ALLOW, store=store)
    parts = load_file(engine.base / "models" / "loras" / lora)
    for name in {key.removeprefix("diffusion_model.").partition(".lora_")[0] for key in parts}:
        up, down = (parts[f"diffusion_model.{name}.lora_{x}.weight"] for x in "BA")
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + up @ down
    for name in plan.names:
        plan.fill_(name, weights[name])
    return weights


def verified(engine, model):
    return node(engine, "SafeFluxVerify", model, "go on")[1]


def test_it_draws_as_the_baked_file_and_leaves_the_shared_weights(
    engine, loaded, guard, draw, bfl, store, tmp_path, bits_of
):
    model = loaded()
    before, plain = bits_of(model.model), draw(model)
    guarded = guard(model)
    drawn = draw(guarded)
    safeflux.bake(bfl, tmp_path / "baked.safetensors", BOTH, store=store)
    assert torch.equal(drawn, draw(loaded(tmp_path / "baked.safetensors")))
    assert not torch.allclose(drawn, plain, atol=1e-3)
    assert torch.equal(draw(model), plain)  # another workflow over the same cached loader
    assert torch.equal(draw(guarded), drawn)
    engine.model_management.unload_all_models()
    assert bits_of(model.model) == before
    assert torch.equal(draw(guarded), drawn)


@pytest.mark.parametrize("where", ["before", "after", "twice", "as a hook", "off the device"])
def test_no_lora_switches_a_masked_weight_on(
    engine, loaded, guard, draw, add_lora, lora, by_hand, tmp_path, monkeypatch, where
):
    save_file(by_hand, tmp_path / "by-hand.safetensors")
    expected = draw(loaded(tmp_path / "by-hand.safetensors"))
    model, hooks = loaded(), None
    if where == "as a hook":
        weights = load_file(engine.base / "models" / "loras" / lora)
        guarded, hooks = guard(model, ALLOW), engine.hooks.create_hook_lora(weights, 1.0, 0.0)
    elif where == "before":
        guarded = guard(add_lora(model), ALLOW)
    elif where == "twice":
        guarded = add_lora(guard(add_lora(model, 0.25), ALLOW), 0.75)
    else:
        guarded = add_lora(guard(model, ALLOW))
    if where == "off the device":
        engine.model_management.load_models_gpu([guarded])
        assert guarded.partially_unload(torch.device("cpu"), 1e9) > 0
        assert guarded.model.model_lowvram
        with monkeypatch.context() as full:  # as where no memory is free to load them again
            full.setattr(engine.model_management, "load_models_gpu", lambda *_, **__: None)
            drawn = draw(guarded)
    else:
        drawn = draw(guarded, hooks)
    assert torch.allclose(drawn, expected, atol=1e-4)
    assert not torch.allclose(drawn, draw(guard(model)), atol=1e-2)  # the LoRA does something
    assert "GUARDED" in verified(engine, guarded)


def test_a_saved_model_is_guarded_also_behind_a_lora(engine, loaded, guard, add_lora, bfl, store):
    for model in (guard(loaded()), add_lora(guard(loaded(), ALLOW))):
        node(engine, "ModelSave", model, "saved/model")
        saved = max((engine.base / "output" / "saved").iterdir(), key=lambda path: path.name)
        assert safeflux.verify_files(saved, ALLOW, store=store, base=bfl).status.state is safeflux.State.GUARDED


def test_scaled_float8_is_as_the_baked_file_up_to_the_engines_rounding(
    engine, loaded, guard, draw, bfl, store, tmp_path
):
    weights = {}
    for name, tensor in load_file(bfl).items():
        is_matrix = tensor.dim() == 2 and "_blocks." in name
        weights[name] = (tensor / 0.3).to(torch.float8_e4m3fn) if is_matrix else tensor
        if is_matrix:
            weights[name.replace(".weight", ".scale_weight")] = torch.tensor(0.3)
    weights["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(weights, tmp_path / "scaled.safetensors")
    model = loaded(tmp_path / "scaled.safetensors")
    plain, guarded = draw(model), guard(model)
    drawn = draw(guarded)
    mine = {name: weight.detach().float() for name, weight in model.model.named_parameters()}
    assert "GUARDED" in verified(engine, guarded)
    safeflux.bake(tmp_path / "scaled.safetensors", tmp_path / "scaled-baked.safetensors", BOTH, store=store)
    baked = loaded(tmp_path / "scaled-baked.safetensors")
    assert (drawn - draw(baked)).norm() < 0.1 * (drawn - plain).norm()
    theirs = {name: weight.detach().float() for name, weight in baked.model.named_parameters()}
    moved = sum(int((mine[name] != theirs[name]).sum()) for name in mine)
    assert 0 < moved < 0.002 * sum(weight.numel() for weight in mine.values())  # as with any patch on float8
    assert all(torch.equal(mine[name] == 0, theirs[name] == 0) for name in mine)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_gguf_by_its_own_loader(engine, loaded_gguf, guard, draw, add_lora, base_transformer, tmp_path, kind):
    path = write_gguf(tmp_path / f"{kind}.gguf", to_bfl(base_transformer), GGMLQuantizationType[kind])
    model = loaded_gguf(path)
    plain = draw(model)
    guarded = guard(model, ALLOW)
    drawn = draw(guarded)
    assert not torch.allclose(drawn, plain, atol=1e-3)
    for each in (guarded, add_lora(guarded), guard(add_lora(model), ALLOW)):
        assert "GUARDED" in verified(engine, each)
    assert not torch.allclose(draw(add_lora(guarded)), drawn, atol=1e-3)
    assert torch.equal(draw(model), plain)
    receipt = json.loads(node(engine, "SafeFluxReceipt", guarded)["result"][0])
    assert kind in receipt["base"]["dtypes"]


def test_other_base_weights_are_refused(loaded, guard, other_transformer, tmp_path):
    save_file(to_bfl(other_transformer), tmp_path / "other.safetensors")
    with pytest.raises(safeflux.MaskMismatchError, match="was trained for other base weights"):
        guard(loaded(tmp_path / "other.safetensors"))


def test_a_policy_that_denies_adapters(engine, loaded, guard, add_lora):
    with pytest.raises(safeflux.ModelError, match="says `adapters: deny`"):
        guard(add_lora(loaded()))
    later = add_lora(guard(loaded()))
    assert "DEGRADED" in verified(engine, later)
    with pytest.raises(safeflux.ModelError, match=r"is DEGRADED: other nodes put patches \(a LoRA"):
        node(engine, "SafeFluxVerify", later, "stop")


def test_an_allowlist_is_refused_and_a_replaced_layer_is_no_pass(engine, loaded, guard):
    listed = {"name": "listed", "adapters": Adapters.ALLOWLIST, "adapter_allowlist": ("0" * 64,)}
    with pytest.raises(safeflux.ModelError, match="cannot be recognised once they are loaded; say `deny` or `allow`"):
        guard(loaded(), BOTH.model_copy(update=listed))
    model = guard(loaded())
    name = "diffusion_model.double_blocks.0.img_mlp.0"
    model.add_object_patch(name, model.get_model_object(name))
    with pytest.raises(safeflux.ModelError, match=f"STALE: another node replaced '{name}'"):
        node(engine, "SafeFluxVerify", model, "stop")


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_weights_that_the_loader_casts_to_float8(engine, loaded, guard, draw, dtype):
    model = loaded(dtype=dtype)
    guarded = guard(model)
    assert not torch.equal(draw(guarded), draw(model))
    assert "GUARDED" in verified(engine, guarded)


def test_a_model_without_a_guard_is_no_pass(engine, loaded):
    for name, *inputs in (("SafeFluxVerify", "stop"), ("SafeFluxVerify", "go on"), ("SafeFluxReceipt",)):
        with pytest.raises(safeflux.ModelError, match="UNGUARDED"):
            node(engine, name, loaded(), *inputs)


def test_the_receipt_is_in_an_unbroken_log(engine, loaded, guard, add_lora):
    model = add_lora(guard(loaded(), ALLOW))
    receipt = json.loads(node(engine, "SafeFluxReceipt", model)["result"][0])
    assert (receipt["state"], receipt["policy"]["name"], receipt["faults"]) == ("GUARDED", "lax", [])
    assert receipt["base"]["dtypes"] == ["float32"]
    assert receipt["adapters"]["diffusion_model.double_blocks.0.img_mlp.0"]["adapters"] == ["1 patches"]
    assert receipt["versions"]["comfyui"]
    log = engine.base / "output" / "safeflux-audit.jsonl"
    assert safeflux.verify_log(log).faults == ()
    assert json.loads(log.read_text().splitlines()[-1])["receipt"] == receipt


def test_the_guard_runs_again_when_a_mask_or_the_policy_changed_and_says_what_is_wrong_with_it(
    engine, loaded, guard, masks, store
):
    guard(loaded(), ALLOW)
    kind = engine.nodes.NODE_CLASS_MAPPINGS["SafeFluxGuard"]
    offered = kind.INPUT_TYPES()["required"]
    assert {"strict", "lax.yaml"} <= set(offered["policy"][0])
    assert {"models/safeflux", masks} <= set(offered["store"][0])
    policy, mask = engine.base / "models" / "safeflux" / "lax.yaml", next(store.rglob("*.safetensors"))

    def state():
        return kind.IS_CHANGED(model=None, policy="lax.yaml", store=masks)

    states = [state(), state()]
    mask.touch()
    states.append(state())
    policy.write_text(policy.read_text(encoding="utf-8").replace("lax", "loose"), encoding="utf-8")
    states.append(state())
    assert states[0] == states[1]
    assert len(set(states)) == 3
    policy.write_text("apiVersion: safeflux/v1\nkind: Policy\nname: lax\ncatgories: {}\n", encoding="utf-8")
    with pytest.raises(safeflux.PolicyError, match=r"lax\.yaml:4:1: .*did you mean 'categories'"):
        node(engine, "SafeFluxGuard", loaded(), "lax.yaml", masks)


def test_a_second_guard_goes_on_top(engine, loaded, guard, draw):
    both = draw(guard(loaded()))
    second = guard(guard(loaded(), BLADES), SPIRITS)
    assert torch.equal(draw(second), both)
    assert verified(engine, second).count("GUARDED") == 2
    assert len(json.loads(node(engine, "SafeFluxReceipt", second)["result"][0])) == 2
