"""Chroma: FLUX.1's sites without modulations and pooled prompt, in both layouts; and what only looks alike."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_chroma_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file

from safeflux.baking.bake import bake
from safeflux.checkpoints.checkpoint import Checkpoint
from safeflux.errors import ModelError
from safeflux.families.sites import find_sites, parameter_shapes
from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.model.apply import apply_masks_
from safeflux.model.weights import fingerprint
from safeflux.policy.load import Category, Policy
from tests.helpers.layouts import sites_that_agree, to_bfl

DIM, MLP = 3072, 12288
POLICY = Policy(name="blades-only", categories={"weapons": Category(masks=("blades",))})


def test_its_sites_are_those_of_flux1_but_for_modulations_and_the_pooled_prompt(chroma_transformer, transformer):
    alike = {
        name: site.shape
        for name, site in find_sites(transformer).items()
        if ".norm" not in name and not name.startswith("time_text_embed")
    }
    sites = find_sites(chroma_transformer)
    assert {name: site.shape for name, site in sites.items()} == alike
    assert (sites.family, len(sites)) == ("chroma", 39)
    assert find_sites(transformer).family == "flux1"


def bfl_checkpoint() -> dict[str, torch.Tensor]:
    """Chroma in BFL's layout at full width, one block of each sort; every value is the row (or column) it stands in."""
    qkv = 3 * DIM
    rows = {"img_in": DIM, "txt_in": DIM, "final_layer.linear": 1, "single_blocks.0.linear1": qkv + MLP}
    columns = {"single_blocks.0.linear2": DIM + MLP}
    for stream in ("img", "txt"):
        home = f"double_blocks.0.{stream}"
        rows |= {f"{home}_attn.qkv": qkv, f"{home}_attn.proj": DIM, f"{home}_mlp.0": MLP}
        columns[f"{home}_mlp.2"] = MLP
    guidance = ("in_proj", "out_proj", "layers.0.in_layer", "layers.0.out_layer")
    rows |= {f"distilled_guidance_layer.{name}": 1 for name in guidance}
    norms = ["distilled_guidance_layer.norms.0.scale"]
    for home in ("double_blocks.0.img_attn.norm", "double_blocks.0.txt_attn.norm", "single_blocks.0.norm"):
        norms += [f"{home}.{name}_norm.scale" for name in ("query", "key")]
    checkpoint = {f"{name}.weight": torch.arange(count)[:, None].repeat(1, 2) for name, count in rows.items()}
    checkpoint |= {f"{name}.weight": torch.arange(count).repeat(2, 1) for name, count in columns.items()}
    biases = {f"{name.removesuffix('weight')}bias": torch.arange(len(value)) for name, value in checkpoint.items()}
    biases |= {f"{name}.bias": torch.arange(DIM) for name in columns}
    return checkpoint | biases | {name: torch.zeros(1) for name in norms}


def test_the_bfl_table_agrees_with_the_converter_of_diffusers():
    assert len(sites_that_agree(bfl_checkpoint(), convert_chroma_transformer_checkpoint_to_diffusers)) == 20


def test_it_is_baked_in_both_layouts_as_a_guard_writes_it(chroma_transformer, make_meta, tmp_path):
    draw, base = torch.Generator().manual_seed(0), fingerprint(chroma_transformer)
    sites = find_sites(chroma_transformer)
    masks = MaskSet({name: torch.rand(site.shape, generator=draw) >= 0.1 for name, site in sites.items()})
    save_masks(tmp_path / "blades.safetensors", masks, make_meta(family="chroma", fingerprint=base))
    chroma_transformer.save_pretrained(tmp_path / "model")
    save_file(to_bfl(chroma_transformer, "model.diffusion_model."), tmp_path / "chroma.safetensors")
    for name in ("model", "chroma.safetensors"):
        found = Checkpoint.open(tmp_path / name)
        assert (found.sites, found.fingerprint) == (sites, base)
        bake(tmp_path / name, tmp_path / f"guarded-{name}", POLICY, store=tmp_path)
    apply_masks_(chroma_transformer, masks)
    folder = load_file(tmp_path / "guarded-model/diffusion_pytorch_model.safetensors")
    for tensors, expected in (
        (folder, chroma_transformer.state_dict()),
        (
            load_file(tmp_path / "guarded-chroma.safetensors"),
            to_bfl(chroma_transformer, "model.diffusion_model."),
        ),
    ):
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("distilled_guidance_layer.in_proj.weight", "not a FLUX model.*distilled_guidance_layer.in_proj"),
        ("transformer_blocks.1.ff_context.net.2.weight", r"1.ff_context.net.2.weight' is missing"),
    ],
)
def test_a_model_that_is_nearly_a_chroma_is_refused(chroma_transformer, lost, message):
    shapes = parameter_shapes(chroma_transformer)
    del shapes[lost]
    with pytest.raises(ModelError, match=message):
        find_sites(shapes)


def test_flux1_at_its_full_size_is_no_chroma():
    with torch.device("meta"):
        assert find_sites(FluxTransformer2DModel()).family == "flux1"
