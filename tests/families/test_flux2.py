"""FLUX.2's gated neurons and text weights: where they live in both layouts, and that masks switch them off for good."""

import copy

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

from safeflux.errors import MaskMismatchError, ModelError
from safeflux.families.fingerprint import same_base
from safeflux.families.sites import find_sites, parameter_shapes
from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.model.apply import apply_masks_
from safeflux.model.guard import guard
from safeflux.model.weights import fingerprint
from safeflux.plan.status import State
from safeflux.policy.load import Category, Policy
from tests.helpers.layouts import sites_that_agree
from tests.helpers.models import MATRICES

DIM, MLP = 6144, 18432
POLICY = Policy(name="blades-only", categories={"weapons": Category(masks=("blades",))})


def masks_for(model, seed: int, kinds=("ff", "mlp", "weight", "image")) -> MaskSet:
    """A tenth of the bits off at random."""
    draw = torch.Generator().manual_seed(seed)
    sites = [site for site in find_sites(model).values() if site.kind in kinds]
    return MaskSet({site.name: torch.rand(site.shape, generator=draw) >= 0.1 for site in sites})


@torch.no_grad()
def forward(model) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return model(
        hidden_states=torch.randn(2, 6, 16, generator=draw),
        encoder_hidden_states=torch.randn(2, 3, 24, generator=draw),
        timestep=torch.tensor([0.3, 0.8]),
        guidance=torch.tensor([4.0, 1.0]),
        img_ids=torch.cartesian_prod(*map(torch.arange, (1, 2, 3, 1))),
        txt_ids=torch.cartesian_prod(*map(torch.arange, (1, 1, 1, 3))),
        return_dict=False,
    )[0]


def neuron(model, name):
    """The two layers of a neuron site, and where gates, values and outgoing columns begin: without the tables."""
    module = model.get_submodule(name.split(":")[0])
    if name.endswith(":ff"):
        return module.linear_in.weight, module.linear_out.weight, (0, 96, 0)
    return module.attn.to_qkv_mlp_proj.weight, module.attn.to_out.weight, (96, 192, 32)


@torch.no_grad()
def fill(model, masks, pieces, value):
    """Write a value into gates, values or columns of every masked neuron; sites of matrices into their elements."""
    for name, mask in masks.items():
        off = (~torch.from_numpy(mask)).nonzero(as_tuple=True)
        if name.endswith(MATRICES):
            model.get_submodule(name.split(":")[0]).weight[off] = value
            continue
        into, out, (gate, values, column) = neuron(model, name)
        for piece in pieces:
            if piece == "column":
                out[:, off[0] + column] = value
            else:
                into[off[0] + {"gate": gate, "value": values}[piece]] = value


def test_every_site_of_the_small_model(flux2_transformer):
    sites = find_sites(flux2_transformer)
    assert {name: site.shape for name, site in sites.items() if ".1" not in name} == {
        "transformer_blocks.0.ff:ff": (96,),
        "transformer_blocks.0.ff_context:ff": (96,),
        "single_transformer_blocks.0:mlp": (96,),
        "context_embedder:weight": (32, 24),
        "transformer_blocks.0.attn.add_q_proj:weight": (32, 32),
        "transformer_blocks.0.attn.add_k_proj:weight": (32, 32),
        "transformer_blocks.0.attn.add_v_proj:weight": (32, 32),
        "transformer_blocks.0.ff_context.linear_in:weight": (192, 32),
        "transformer_blocks.0.ff_context.linear_out:weight": (32, 96),
        "transformer_blocks.0.attn.to_q:image": (32, 32),
        "transformer_blocks.0.attn.to_k:image": (32, 32),
        "transformer_blocks.0.attn.to_v:image": (32, 32),
        "transformer_blocks.0.attn.to_out.0:image": (32, 32),
        "transformer_blocks.0.ff.linear_in:image": (192, 32),
        "transformer_blocks.0.ff.linear_out:image": (32, 96),
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj:image": (288, 32),
        "single_transformer_blocks.0.attn.to_out:image": (32, 128),
        "double_stream_modulation_img.linear:image": (192, 32),
        "double_stream_modulation_txt.linear:image": (192, 32),
        "single_stream_modulation.linear:image": (96, 32),
    }
    assert len(sites) == 36
    assert {site.family for site in sites.values()} == {"flux2"}


def test_flux2_has_the_published_numbers_of_neurons():
    with torch.device("meta"):
        sites = find_sites(Flux2Transformer2DModel()).values()
    assert [s.shape for s in sites if s.kind == "ff"] == [(MLP,)] * 16
    assert [s.shape for s in sites if s.kind == "mlp"] == [(MLP,)] * 48


def bfl_checkpoint() -> dict[str, torch.Tensor]:
    """FLUX.2 in BFL's layout at full width, one block of each sort; every value is the row (or column) it stands in."""
    rows = {
        "img_in": DIM, "txt_in": DIM, "time_in.in_layer": 1, "time_in.out_layer": 1, "final_layer.linear": 1,
        "final_layer.adaLN_modulation.1": 2, "double_stream_modulation_img.lin": 1,
        "double_stream_modulation_txt.lin": 1, "single_stream_modulation.lin": 1,
        "double_blocks.0.img_attn.qkv": 3 * DIM, "double_blocks.0.txt_attn.qkv": 3 * DIM,
        "double_blocks.0.img_attn.proj": 1, "double_blocks.0.txt_attn.proj": 1,
        "double_blocks.0.img_mlp.0": 2 * MLP, "double_blocks.0.txt_mlp.0": 2 * MLP,
        "single_blocks.0.linear1": 3 * DIM + 2 * MLP,
    }  # fmt: skip
    columns = {
        "double_blocks.0.img_mlp.2": MLP,
        "double_blocks.0.txt_mlp.2": MLP,
        "single_blocks.0.linear2": DIM + MLP,
    }
    checkpoint = {f"{name}.weight": torch.arange(count).unsqueeze(1).repeat(1, 2) for name, count in rows.items()}
    return checkpoint | {f"{name}.weight": torch.arange(count).repeat(2, 1) for name, count in columns.items()}


def test_the_bfl_table_agrees_with_the_converter_of_diffusers():
    assert len(sites_that_agree(bfl_checkpoint(), convert_flux2_transformer_checkpoint_to_diffusers)) == 20


@pytest.mark.parametrize("kinds", [("ff",), ("mlp",), ("weight",), ("image",), ("ff", "mlp", "weight", "image")])
def test_a_masked_model_equals_one_with_hand_zeroed_weights(flux2_transformer, bits_of, kinds):
    before, by_hand = forward(flux2_transformer), copy.deepcopy(flux2_transformer)
    masks = masks_for(flux2_transformer, 1, kinds)
    fill(by_hand, masks, ("gate", "value", "column"), 0)
    apply_masks_(flux2_transformer, masks)
    assert bits_of(flux2_transformer) == bits_of(by_hand)
    assert not torch.equal(forward(flux2_transformer), before)


@pytest.mark.parametrize("kind", ["ff", "mlp"])
@pytest.mark.parametrize("garbage", [("value", "column"), ("gate", "column"), ("gate", "value")])
def test_a_masked_neuron_is_dead_by_any_one_of_its_tensors(flux2_transformer, kind, garbage):
    masks = masks_for(flux2_transformer, 2, (kind,))
    apply_masks_(flux2_transformer, masks)
    masked = forward(flux2_transformer)
    fill(flux2_transformer, masks, garbage, 3.0)
    torch.testing.assert_close(forward(flux2_transformer), masked)
    fill(flux2_transformer, masks, ("gate", "value", "column"), 3.0)
    assert (forward(flux2_transformer) - masked).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore")
def test_undo_restores_every_bit(flux2_transformer, bits_of, dtype):
    flux2_transformer.to(dtype)
    before = bits_of(flux2_transformer)
    undo = apply_masks_(flux2_transformer, masks_for(flux2_transformer, 3))
    assert bits_of(flux2_transformer) != before
    undo.restore_()
    assert bits_of(flux2_transformer) == before


def test_guard_and_fingerprint_know_it(flux2_transformer, make_meta, tmp_path):
    base = fingerprint(flux2_transformer)
    assert same_base(base, fingerprint(copy.deepcopy(flux2_transformer).double()))
    masks = masks_for(flux2_transformer, 4)
    save_masks(tmp_path / "blades.safetensors", masks, make_meta(family="flux2", fingerprint=base))
    handle = guard(flux2_transformer, POLICY, store=tmp_path)
    assert handle.verify().state is State.GUARDED
    assert handle.receipt()["base"]["family"] == "flux2"
    assert not same_base(base, fingerprint(flux2_transformer))
    with torch.no_grad():
        neuron(flux2_transformer, "single_transformer_blocks.1:mlp")[0][192:] = 1.0
    assert handle.verify().state is State.DEGRADED


def test_guard_takes_itself_back(flux2_transformer, bits_of, make_meta, tmp_path):
    before = bits_of(flux2_transformer)
    meta = make_meta(family="flux2", fingerprint=fingerprint(flux2_transformer))
    save_masks(tmp_path / "blades.safetensors", masks_for(flux2_transformer, 4), meta)
    guard(flux2_transformer, POLICY, store=tmp_path).undo()
    assert bits_of(flux2_transformer) == before


def test_masks_of_the_other_family_are_refused(flux2_transformer, make_masks, bits_of):
    before = bits_of(flux2_transformer)
    with pytest.raises(MaskMismatchError, match="do not fit this model"):
        apply_masks_(flux2_transformer, make_masks(1))
    assert bits_of(flux2_transformer) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"transformer_blocks.0.ff.linear_in.weight": (193, 32)},
            r"0.ff:ff.*disagree.*linear_in.weight 96\.5.*linear_out.weight 96",
        ),
        ({"single_transformer_blocks.1.attn.to_out.weight": (32, 96)}, r"blocks.1:mlp.*disagree.*to_out.weight 64"),
        ({"transformer_blocks.1.ff_context.linear_in.weight": None}, r"1.ff_context.linear_in.weight' is missing"),
        (
            {"double_stream_modulation_txt.linear.weight": None},
            r"not a FLUX model.*double_stream_modulation_txt.linear",
        ),
    ],
)
def test_a_model_that_is_nearly_a_flux2_is_refused(flux2_transformer, change, message):
    shapes = {name: s for name, s in (parameter_shapes(flux2_transformer) | change).items() if s is not None}
    with pytest.raises(ModelError, match=message):
        find_sites(shapes)
