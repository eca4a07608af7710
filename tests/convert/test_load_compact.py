"""A compacted model saved and loaded again: the same bits by our loader, and a refusal by diffusers' own."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from safetensors.torch import load_file, save_file

from safeflux.convert.load_compact import load_compact
from safeflux.errors import MaskMismatchError, ModelError
from safeflux.masks.cuts import WIDTHS
from safeflux.model.compact import compact_
from tests.families.test_flux2 import forward as forward_flux2
from tests.families.test_flux2 import masks_for
from tests.helpers.models import MATRICES

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def saved(transformer, make_masks, tmp_path) -> Path:
    """A compacted transformer's folder."""
    compact_(transformer, make_masks(1, share=0.5), round_to=1)
    transformer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("shard", ["10GB", "20KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_trip_gives_the_same_bits(transformer, make_masks, forward, bits_of, tmp_path, shard, dtype):
    transformer.to(dtype)
    compact_(transformer, make_masks(1, share=0.5), round_to=1)
    transformer.save_pretrained(tmp_path / "saved", max_shard_size=shard)
    assert (len(files(tmp_path / "saved")) > 3) == (shard == "20KB")
    loaded = load_compact(tmp_path / "saved")
    assert type(loaded) is type(transformer)
    assert not loaded.training
    assert bits_of(loaded) == bits_of(transformer)
    torch.testing.assert_close(forward(loaded), forward(transformer))
    loaded.save_pretrained(tmp_path / "again", max_shard_size=shard)
    assert files(tmp_path / "again") == files(tmp_path / "saved")


def test_flux2_comes_back_the_same(flux2_transformer, bits_of, tmp_path):
    compact_(flux2_transformer, masks_for(flux2_transformer, 1), round_to=1)
    flux2_transformer.save_pretrained(tmp_path)
    loaded = load_compact(tmp_path)
    assert bits_of(loaded) == bits_of(flux2_transformer)
    torch.testing.assert_close(forward_flux2(loaded), forward_flux2(flux2_transformer))


def test_a_dtype_can_be_asked_for(saved, transformer):
    loaded = load_compact(saved, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.x_embedder.weight, transformer.x_embedder.weight.bfloat16())


def test_a_pipeline_comes_back_and_draws_the_same(pipe, make_masks, bits_of, tmp_path):
    compact_(pipe, make_masks(2, share=0.5), round_to=1)
    pipe.save_pretrained(tmp_path)
    no_text = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    loaded = FluxPipeline.from_pretrained(tmp_path, transformer=load_compact(tmp_path), **no_text)
    loaded.set_progress_bar_config(disable=True)
    assert bits_of(loaded.transformer) == bits_of(pipe.transformer)
    torch.testing.assert_close(draw(loaded), draw(pipe))


def draw(pipe):
    prompt, pooled = torch.zeros(1, 3, 24), torch.ones(1, 20)
    noise = torch.Generator().manual_seed(0)
    return pipe(
        prompt_embeds=prompt, pooled_prompt_embeds=pooled, height=8, width=8, num_inference_steps=2, generator=noise,
        output_type="pt",
    ).images  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": False}, {"device_map": "cpu"}])
def test_diffusers_alone_refuses_the_folder(saved, transformer, options):
    with pytest.raises((ValueError, RuntimeError), match=r"expected.*shape|size mismatch"):
        type(transformer).from_pretrained(saved, **options)


def test_a_model_that_lost_no_neurons_loads_both_ways(transformer, make_masks, bits_of, tmp_path):
    compact_(transformer, make_masks(3, MATRICES))
    transformer.save_pretrained(tmp_path)
    assert bits_of(load_compact(tmp_path)) == bits_of(transformer)
    assert bits_of(type(transformer).from_pretrained(tmp_path)) == bits_of(transformer)


def test_what_is_loaded_can_lose_no_more_by_old_masks(saved, make_masks):
    with pytest.raises(MaskMismatchError, match="do not fit this model"):
        compact_(load_compact(saved), make_masks(1, share=0.5))


def change_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_weights(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def ints(weights):
    weights["proj_out.bias"] = weights["proj_out.bias"].int()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: cannot be read"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "expected a mapping, got list"),
        (lambda f: change_config(f, _class_name="Path"), "got _class_name 'Path'"),
        (lambda f: change_config(f, _class_name=None), "got _class_name None"),
        (lambda f: change_config(f, _class_name="FluxControlNetModel"), "not a FLUX model"),
        (lambda f: change_config(f, num_layers="two"), "cannot create a FluxTransformer2DModel"),
        (lambda f: change_config(f, num_layers=3), r"transformer_blocks\.2\..*got none; copy the model again"),
        (lambda f: change_config(f, num_layers=1), r"names 'transformer_blocks\.1\..*no such feed-forward"),
        (lambda f: change_config(f, **{WIDTHS: None}), "expected 'safeflux_widths'.*from_pretrained"),
        (lambda f: change_config(f, **{WIDTHS: {"transformer_blocks.0.ff:ff": 500}}), "got 500"),
        (lambda f: change_config(f, **{WIDTHS: {"transformer_blocks.0.ff:ff": 5}}), r"expected \(.*\) from the config"),
        (lambda f: (f / WEIGHTS).unlink(), "found neither"),
        (lambda f: (f / WEIGHTS).write_bytes(b"no"), "cannot be read as safetensors"),
        (lambda f: change_weights(f, lambda w: w.pop("proj_out.bias")), "'proj_out.bias'.*got none"),
        (
            lambda f: change_weights(f, lambda w: w.update(one=w["proj_out.bias"].clone())),
            "'one': expected no such tensor",
        ),
        (lambda f: change_weights(f, ints), "'proj_out.bias'.*int32"),
    ],
)
def test_folders_that_hold_no_compacted_model_are_refused(saved, spoil, message):
    spoil(saved)
    with pytest.raises(ModelError, match=message):
        load_compact(saved)


def test_a_plain_model_is_refused(base_transformer, tmp_path):
    base_transformer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="Load a model that is not compacted with `from_pretrained`"):
        load_compact(tmp_path)
