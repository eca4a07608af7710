"""Sites: found by name and shape, in both layouts; what is only nearly a FLUX is refused."""

import pytest
import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

from safeflux.errors import ModelError
from safeflux.families.sites import Site, Span, adapter_names, base_names, find_sites, parameter_shapes, spans
from tests.helpers.layouts import sites_that_agree

DIM = 3072


def test_every_site_of_the_small_model(transformer):
    sites = find_sites(transformer)
    assert {name: site.shape for name, site in sites.items() if ".1" not in name} == {
        "transformer_blocks.0.ff:ff": (128,),
        "transformer_blocks.0.ff_context:ff": (128,),
        "single_transformer_blocks.0:mlp": (128,),
        "transformer_blocks.0.norm1_context:norm": (192,),
        "context_embedder:weight": (32, 24),
        "time_text_embed.text_embedder.linear_1:weight": (32, 20),
        "time_text_embed.text_embedder.linear_2:weight": (32, 32),
        "transformer_blocks.0.attn.add_q_proj:weight": (32, 32),
        "transformer_blocks.0.attn.add_k_proj:weight": (32, 32),
        "transformer_blocks.0.attn.add_v_proj:weight": (32, 32),
        "transformer_blocks.0.ff_context.net.0.proj:weight": (128, 32),
        "transformer_blocks.0.ff_context.net.2:weight": (32, 128),
        "transformer_blocks.0.attn.to_q:image": (32, 32),
        "transformer_blocks.0.attn.to_k:image": (32, 32),
        "transformer_blocks.0.attn.to_v:image": (32, 32),
        "transformer_blocks.0.attn.to_out.0:image": (32, 32),
        "transformer_blocks.0.norm1.linear:image": (192, 32),
        "transformer_blocks.0.norm1_context.linear:image": (192, 32),
        "transformer_blocks.0.ff.net.0.proj:image": (128, 32),
        "transformer_blocks.0.ff.net.2:image": (32, 128),
        "single_transformer_blocks.0.norm.linear:image": (96, 32),
        "single_transformer_blocks.0.attn.to_q:image": (32, 32),
        "single_transformer_blocks.0.attn.to_k:image": (32, 32),
        "single_transformer_blocks.0.attn.to_v:image": (32, 32),
        "single_transformer_blocks.0.proj_mlp:image": (128, 32),
        "single_transformer_blocks.0.proj_out:image": (32, 160),
    }
    assert len(sites) == 49
    assert all(site.name == name for name, site in sites.items())
    assert sites["context_embedder:weight"].num_bits == 32 * 24


def test_flux1_has_the_published_numbers_of_neurons():
    with torch.device("meta"):
        sites = find_sites(FluxTransformer2DModel(guidance_embeds=True)).values()
    assert [s.shape for s in sites if s.kind == "ff"] == [(12288,)] * 38
    assert [s.shape for s in sites if s.kind == "mlp"] == [(12288,)] * 38
    assert [s.shape for s in sites if s.kind == "norm"] == [(18432,)] * 19


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        (
            Site("transformer_blocks.1.ff_context", "ff", (128,), dim=32),
            [
                ("ff_context.net.0.proj.weight", 0, 0),
                ("ff_context.net.0.proj.bias", 0, 0),
                ("ff_context.net.2.weight", 1, 0),
            ],
        ),
        (
            Site("transformer_blocks.1.norm1_context", "norm", (192,), dim=32),
            [("norm1_context.linear.weight", 0, 0), ("norm1_context.linear.bias", 0, 0)],
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Site) else "",
)
def test_a_neuron_spans_both_sides_and_its_bias(site, expected):
    assert spans(site) == tuple(Span(f"transformer_blocks.1.{name}", axis, start) for name, axis, start in expected)


def test_a_single_block_neuron_starts_behind_the_attention_columns(transformer):
    site = find_sites(transformer)["single_transformer_blocks.1:mlp"]
    assert spans(site)[-1] == Span("single_transformer_blocks.1.proj_out.weight", 1, 32)


def bfl_checkpoint() -> dict[str, torch.Tensor]:
    """FLUX.1 in BFL's layout at full width, one block of each sort; every value is the row (or column) it stands in."""
    rows = {
        "time_in.in_layer": 1, "time_in.out_layer": 1, "vector_in.in_layer": 1, "vector_in.out_layer": 1,
        "txt_in": DIM, "img_in": DIM, "final_layer.linear": 64, "final_layer.adaLN_modulation.1": 2,
        "double_blocks.0.img_mod.lin": 6 * DIM, "double_blocks.0.txt_mod.lin": 6 * DIM,
        "double_blocks.0.img_attn.qkv": 3 * DIM, "double_blocks.0.txt_attn.qkv": 3 * DIM,
        "double_blocks.0.img_attn.proj": 1, "double_blocks.0.txt_attn.proj": 1,
        "double_blocks.0.img_mlp.0": 4 * DIM, "double_blocks.0.txt_mlp.0": 4 * DIM,
        "single_blocks.0.linear1": 7 * DIM, "single_blocks.0.modulation.lin": 3 * DIM,
    }  # fmt: skip
    columns = {
        "double_blocks.0.img_mlp.2": 4 * DIM,
        "double_blocks.0.txt_mlp.2": 4 * DIM,
        "single_blocks.0.linear2": 5 * DIM,
    }
    scales = ["double_blocks.0.img_attn", "double_blocks.0.txt_attn", "single_blocks.0"]
    checkpoint = {f"{scale}.norm.{name}_norm.scale": torch.ones(128) for scale in scales for name in ("query", "key")}
    for name, count in rows.items():
        checkpoint[f"{name}.weight"] = torch.arange(count).unsqueeze(1).repeat(1, 2)
        checkpoint[f"{name}.bias"] = torch.arange(count)
    for name, count in columns.items():
        checkpoint[f"{name}.weight"] = torch.arange(count).repeat(2, 1)
        checkpoint[f"{name}.bias"] = torch.zeros(2)
    return checkpoint


def test_the_bfl_table_agrees_with_the_converter_of_diffusers():
    assert len(sites_that_agree(bfl_checkpoint(), convert_flux_transformer_checkpoint_to_diffusers)) == 26


@pytest.mark.parametrize("site", [Site("no.such", "ff", (1,)), Site("transformer_blocks.0.ff", "mlp", (1,))])
def test_a_site_of_no_rule_has_no_spans(site):
    with pytest.raises(ModelError, match="no such site"):
        spans(site)


@pytest.mark.filterwarnings("ignore:.FluxPosEmbed:FutureWarning")  # inside diffusers' own ControlNet
def test_models_that_are_no_flux_are_refused():
    with pytest.raises(ModelError, match=r"not a FLUX model.*x_embedder.weight"):
        find_sites(torch.nn.Linear(2, 2))
    controlnet = FluxControlNetModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=20, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    with pytest.raises(ModelError, match="not a FLUX model"):
        find_sites(controlnet)


def rename(shapes, old, new):
    return {name.replace(old, new): shape for name, shape in shapes.items()}


def without(shapes, name):
    return {key: shape for key, shape in shapes.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "transformer_blocks.1.ff.net.0.proj.bias"), r"1.ff.net.0.proj.bias' is missing"),
        (
            lambda s: without(s, "transformer_blocks.1.norm1_context.linear.bias"),
            "norm1_context.linear.bias' is missing",
        ),
        (lambda s: s | {"transformer_blocks.0.ff.net.2.weight": (32, 127)}, r"transformer_blocks.0.ff:ff.*disagree"),
        (lambda s: s | {"single_transformer_blocks.0.proj_out.weight": (32, 128)}, r"single.*0:mlp.*disagree"),
        (lambda s: s | {"context_embedder.weight": (32,)}, r"_embedder.weight'.*2 axes.*\(32,\)"),
        (lambda s: rename(s, "transformer_blocks.1.", "transformer_blocks.7."), r"without a gap, got \[0, 7\]"),
    ],
)
def test_a_model_that_is_nearly_a_flux_is_refused(transformer, change, message):
    with pytest.raises(ModelError, match=message):
        find_sites(change(parameter_shapes(transformer)))


def test_adapters_are_told_from_the_base():
    tensors = {"a.base_layer.weight": 1, "a.lora_A.default.weight": 2, "b.weight": 3, "a.hada_w1.default": 4}
    assert adapter_names(tensors) == ["a.hada_w1.default", "a.lora_A.default.weight"]
    assert base_names(tensors) == {"a.weight": 1, "b.weight": 3}
