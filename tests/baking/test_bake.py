"""Guarded files: only masked bytes differ, in every layout and format; loaded, they are what a guard makes."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.fluxfile import flux1_shapes, write_flux
from safeflux.baking.bake import bake, check_bake
from safeflux.baking.verify import verify_files
from safeflux.checkpoints.checkpoint import Checkpoint
from safeflux.errors import BakeError
from safeflux.families.fingerprint import same_base
from safeflux.families.sites import find_sites
from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.model.apply import apply_masks_
from safeflux.model.guard import guard
from safeflux.model.weights import fingerprint
from safeflux.plan.status import State
from safeflux.policy.load import Category, Policy
from tests.helpers.layouts import flux2_to_bfl, to_bfl
from tests.helpers.models import SMALL
from tests.helpers.policies import BLADES, BOTH, SPIRITS

WEIGHTS = "diffusion_pytorch_model.safetensors"


def as_bytes(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def tensors_of(path):
    return {name: as_bytes(tensor) for name, tensor in load_file(path).items()}


@pytest.fixture
def guarded(base_transformer, store):
    """The small model with both mask sets in force, made in memory."""
    model = copy.deepcopy(base_transformer)
    guard(model, BOTH, store=store)
    return model


@pytest.fixture(params=["one file", "shards"])
def folder(request, tmp_path, base_transformer):
    """A pipeline's folder, with a file that nobody asked for."""
    root = tmp_path / "model"
    size = "5GB" if request.param == "one file" else "40KB"
    base_transformer.save_pretrained(root / "transformer", max_shard_size=size)
    (root / "vae").mkdir()
    (root / "vae" / "weights.safetensors").write_bytes(b"vae")
    (root / "model_index.json").write_text('{"_class_name": "FluxPipeline", "vae": ["diffusers", "AutoencoderKL"]}')
    (root / "LICENSE.md").write_text("Apache-2.0")
    (root / "flux1-whole.safetensors").write_bytes(b"the whole model, unguarded")
    (root / "transformer" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"unguarded too")
    return root


def test_a_baked_folder_is_what_a_guard_makes_in_memory(folder, guarded, store, bits_of):
    target = folder.parent / "guarded"
    made = bake(folder, target, BOTH, store=store)
    loaded = FluxTransformer2DModel.from_pretrained(target / "transformer")
    assert bits_of(loaded) == bits_of(guarded)
    assert verify_files(target, BOTH, store=store).status.state is State.GUARDED
    assert made.num_masked_tensors == check_bake(folder, target, BOTH, store=store).num_masked_tensors > 20
    names = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    before = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    left = sorted(map(str, made.left_out))
    assert left == ["flux1-whole.safetensors", "transformer/diffusion_pytorch_model.fp16.safetensors"]
    assert names == sorted(set(before) - set(left))
    for same in ("LICENSE.md", "vae/weights.safetensors", "transformer/config.json"):
        assert (target / same).read_bytes() == (folder / same).read_bytes()
    assert {path.name for path in folder.parent.iterdir()} == {"model", "guarded", "store"}


def test_a_file_that_baking_does_not_write_fails_the_check(folder, store):
    target = folder.parent / "guarded"
    bake(folder, target, BOTH, store=store)
    for inside in ("transformer/diffusion_pytorch_model.fp16.safetensors", "flux1-whole.safetensors"):
        shutil.copy(folder / inside, target / inside)
        with pytest.raises(BakeError, match=rf"{inside}: was not written by baking"):
            check_bake(folder, target, BOTH, store=store)
        (target / inside).unlink()
    check_bake(folder, target, BOTH, store=store)


def test_only_masked_bytes_differ(folder, guarded, store):
    source, target = folder / "transformer" / WEIGHTS, folder.parent / "guarded"
    bake(folder, target, BOTH, store=store)
    count = check_bake(folder, target, BOTH, store=store).num_changed_bytes
    pairs = [(path, target / path.relative_to(folder)) for path in source.parent.glob("diffusion_pytorch_model*rs")]
    pairs = [(a, b) for a, b in pairs if b.is_file()]
    differ = 0
    for a, b in pairs:
        with safe_open(a, "pt") as before, safe_open(b, "pt") as after:
            assert list(before.offset_keys()) == list(after.offset_keys())
            told = json.loads(after.metadata().pop("safeflux"))
            assert before.metadata().items() <= after.metadata().items()
        assert told["policies"] == [{"name": BOTH.name, "sha256": BOTH.digest}]
        assert set(told["masks"]) == {"blades", "spirits"}
        old, new = tensors_of(a), tensors_of(b)
        differ += sum(x != y for name in old for x, y in zip(old[name], new[name], strict=True))
    assert pairs
    assert count == differ > 0


def test_the_same_inputs_give_the_same_bytes(bfl, store):
    targets = [bfl.parent / f"{name}.safetensors" for name in "ab"]
    for target in targets:
        bake(bfl, target, BOTH, store=store)
    assert targets[0].read_bytes() == targets[1].read_bytes()
    bake(bfl, targets[1], BLADES, store=store, overwrite=True)
    assert targets[0].read_bytes() != targets[1].read_bytes()


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_bfl_layout_holds_the_same_model(base_transformer, guarded, store, tmp_path, prefix):
    source, target = tmp_path / "flux.safetensors", tmp_path / "guarded.safetensors"
    beside = {"vae.conv.weight": torch.ones(3)} if prefix else {}
    save_file(to_bfl(base_transformer, prefix) | beside, source)
    assert Checkpoint.open(source).fingerprint == fingerprint(base_transformer)
    bake(source, target, BOTH, store=store)
    expected = {name: as_bytes(tensor) for name, tensor in (to_bfl(guarded, prefix) | beside).items()}
    assert tensors_of(target) == expected
    assert verify_files(target, BOTH, store=store).status.state is State.GUARDED


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_float_format_is_zero_where_masked_and_untouched_elsewhere(
    base_transformer, guarded, store, tmp_path, dtype
):
    source, target = tmp_path / "flux.safetensors", tmp_path / "guarded.safetensors"
    small = {name: t.to(dtype) if t.dim() == 2 else t.bfloat16() for name, t in to_bfl(base_transformer).items()}
    save_file(small, source)
    assert same_base(Checkpoint.open(source).fingerprint, fingerprint(base_transformer))
    bake(source, target, BOTH, store=store)
    found, zeros = load_file(target), to_bfl(guarded)
    for name, before in small.items():
        kept = torch.where(zeros[name] == 0, 0.0, before.float())
        assert torch.equal(found[name].float(), torch.where(to_bfl(base_transformer)[name] == 0, before.float(), kept))
    assert verify_files(target, BOTH, store=store).status.state is State.GUARDED


@pytest.mark.parametrize(("weight", "input_"), [("scale_weight", "scale_input"), ("weight_scale", "input_scale")])
def test_scaled_float8_is_the_same_base(base_transformer, store, tmp_path, weight, input_):
    source, target = tmp_path / "flux.safetensors", tmp_path / "guarded.safetensors"
    tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in to_bfl(base_transformer).items():
        if tensor.dim() != 2:
            tensors[name] = tensor
            continue
        scale = tensor.abs().max() / 448
        tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
        tensors[name.replace("weight", weight)] = scale
        tensors[name.replace("weight", input_)] = torch.ones(1)
    save_file(tensors, source)
    assert same_base(Checkpoint.open(source).fingerprint, fingerprint(base_transformer))
    bake(source, target, BOTH, store=store)
    changed = {name for name, data in tensors_of(source).items() if tensors_of(target)[name] != data}
    assert changed
    assert not any("scale" in name for name in changed)
    assert verify_files(target, BOTH, store=store).status.state is State.GUARDED


@pytest.mark.parametrize("form", ["rows", "columns"])
def test_one_side_of_a_neuron_is_enough(bfl, base_transformer, store, tmp_path, forward, guarded, form):
    target = tmp_path / "guarded.safetensors"
    bake(bfl, target, SPIRITS, store=store, form=form)
    both, one = to_bfl(copy.deepcopy(base_transformer)), load_file(target)
    column, row = "double_blocks.0.img_mlp.2.weight", "double_blocks.0.img_mlp.0.weight"
    untouched, touched = (column, row) if form == "rows" else (row, column)
    assert torch.equal(one[untouched], both[untouched])
    assert not torch.equal(one[touched], both[touched])
    assert not torch.equal(one["double_blocks.0.txt_mod.lin.weight"], both["double_blocks.0.txt_mod.lin.weight"])
    assert verify_files(target, SPIRITS, store=store).status.state is State.GUARDED
    check_bake(bfl, target, SPIRITS, store=store, form=form)
    with pytest.raises(BakeError, match="its header does not match these masks"):
        check_bake(bfl, target, SPIRITS, store=store)


VARIANTS = {
    "dev, Krea, Kontext": {"guidance_embeds": True},
    "schnell": {"guidance_embeds": False},
    "Fill": {"guidance_embeds": True, "in_channels": 96, "out_channels": 16},
    "Depth, Canny": {"guidance_embeds": True, "in_channels": 32, "out_channels": 16},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_of_flux_1_is_read_in_both_layouts(variant, make_masks, tmp_path):
    torch.manual_seed(0)
    model = FluxTransformer2DModel(**{**SMALL, "pooled_projection_dim": 20, "axes_dims_rope": (4, 6, 6), **variant})
    model.save_pretrained(tmp_path / "model")
    save_file(to_bfl(model), tmp_path / "flux.safetensors")
    found = [Checkpoint.open(tmp_path / name) for name in ("model", "flux.safetensors")]
    assert found[0].sites == found[1].sites
    assert found[0].fingerprint == found[1].fingerprint == fingerprint(model)


def test_flux_2_is_converted_by_diffusers_to_what_we_see(flux2_transformer, tmp_path):
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers as convert

    state = flux2_to_bfl(flux2_transformer)
    save_file(state, tmp_path / "flux2.safetensors")
    converted = convert({name: tensor.clone() for name, tensor in state.items()})
    assert {name: as_bytes(t) for name, t in converted.items()} == {
        name: as_bytes(t) for name, t in flux2_transformer.state_dict().items()
    }
    flux2_transformer.save_pretrained(tmp_path / "model")
    found = [Checkpoint.open(tmp_path / name) for name in ("model", "flux2.safetensors")]
    assert found[0].sites == found[1].sites
    assert found[0].fingerprint == found[1].fingerprint == fingerprint(flux2_transformer)


@pytest.fixture
def own_store(tmp_path, make_meta):
    """Save a mask set for a model under the name `own`, and return the store and a policy that asks for it."""

    def save(base, family, masks):
        folder = tmp_path / "own"
        folder.mkdir()
        save_masks(folder / "own.safetensors", masks, make_meta(fingerprint=base, family=family))
        return folder, Policy(name="own", categories={"weapons": Category(masks=("own",))})

    return save


def drawn_masks(sites, share):
    draw = np.random.default_rng(0)
    return MaskSet({site.name: draw.random(site.shape, dtype=np.float32) >= share for site in sites.values()})


def baked_then_converted_and_the_other_way(source, convert, tmp_path, policy, store):
    """The tensors of a BFL file, baked and converted by diffusers, and those of one that was converted and baked."""
    bake(source, tmp_path / "guarded.safetensors", policy, store=store)
    first = convert(load_file(tmp_path / "guarded.safetensors"))
    (tmp_path / "converted").mkdir()
    save_file({n: t.contiguous() for n, t in convert(load_file(source)).items()}, tmp_path / "converted" / WEIGHTS)
    bake(tmp_path / "converted", tmp_path / "after", policy, store=store)
    return first, load_file(tmp_path / "after" / WEIGHTS)


def test_flux_2_baked_and_converted_is_converted_and_baked(flux2_transformer, own_store, tmp_path):
    save_file(flux2_to_bfl(flux2_transformer), tmp_path / "flux2.safetensors")
    masks = drawn_masks(find_sites(flux2_transformer), 0.05)
    store, policy = own_store(fingerprint(flux2_transformer), "flux2", masks)
    first, second = baked_then_converted_and_the_other_way(
        tmp_path / "flux2.safetensors", flux2_to_diffusers, tmp_path, policy, store
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    apply_masks_(flux2_transformer, masks)
    assert all(torch.equal(first[name], tensor) for name, tensor in flux2_transformer.state_dict().items())


@pytest.mark.thorough  # the tests above do it at small widths
def test_at_the_width_of_flux_1_baked_and_converted_is_converted_and_baked(own_store, tmp_path):
    source = tmp_path / "flux1.safetensors"
    write_flux(source, flux1_shapes(1, 1), "F8_E4M3")
    found = Checkpoint.open(source)
    masks = drawn_masks(found.sites, 0.01)
    store, policy = own_store(found.fingerprint, "flux1", masks)
    first, second = baked_then_converted_and_the_other_way(source, flux1_to_diffusers, tmp_path, policy, store)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8)) for name in first)
    assert sum(int((t.view(torch.uint8) == 0).count_nonzero()) for t in first.values()) > masks.count.masked


def flux1_to_diffusers(state):
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers as convert

    return convert(state)


def flux2_to_diffusers(state):
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers as convert

    return convert(state)
