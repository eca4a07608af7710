"""FLUX transformers exported by torch and run by ONNX Runtime, guarded before or masked after."""

import copy
import importlib
import json
import sys
from contextlib import chdir

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from peft import LoraConfig

from safeflux.baking.bake import bake
from safeflux.baking.stamp import FORMAT, KEY, Stamp
from safeflux.checkpoints.onnx_model import read_model
from safeflux.cli import main
from safeflux.convert.onnx_export import export_onnx
from safeflux.errors import ConfigError, ModelError
from safeflux.families.sites import find_sites
from safeflux.masks.encoding import digest
from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import MaskSet, compose
from safeflux.model.guard import guard
from safeflux.model.weights import fingerprint
from safeflux.reference import NAME
from safeflux.reference.model import load_pipeline
from safeflux.reference.onnx_session import providers
from tests.helpers.onnx_running import FEWEST, assert_runs_like, bytes_in, facts, inputs_of, run, session, tensors
from tests.helpers.policies import BLADES, BOTH, SPIRITS
from tests.helpers.tiny import save_tiny

BOTH_YAML = """\
apiVersion: safeflux/v1
kind: Policy
name: both
categories: {weapons: {masks: [blades]}, alcohol: {masks: [spirits]}}
"""


def test_an_export_has_the_parameters_by_name_and_answers_like_torch(small, plain):
    found = tensors(plain)
    assert found.keys() == dict(small.named_parameters()).keys()
    for name, parameter in small.named_parameters():
        assert np.array_equal(found[name], parameter.detach().numpy()), name
    onnx.checker.check_model(plain)
    assert_runs_like(plain, small)
    running = session(plain)
    assert {one.name: one.shape for one in running.get_inputs()} == {
        "hidden_states": ["batch", "image_tokens", 16],
        "encoder_hidden_states": ["batch", "text_tokens", 24],
        "pooled_projections": ["batch", 20],
        "timestep": ["batch"],
        "img_ids": ["image_tokens", 3],
        "txt_ids": ["text_tokens", 3],
    }
    assert [(one.name, one.shape) for one in running.get_outputs()] == [("sample", ["batch", "image_tokens", 16])]
    assert KEY not in running.get_modelmeta().custom_metadata_map
    assert b"site-packages" not in plain.read_bytes()


def test_masked_after_the_export_is_guarded_before_it_byte_for_byte(small, guarded, plain, masks, tmp_path):
    before = bytes_in(plain.parent)
    plan = bake(plain, tmp_path / "after", BOTH, store=masks).plan
    small.save_pretrained(save_tiny(tmp_path / "flux", "flux1-dev") / "transformer")
    (tmp_path / "both.yaml").write_text(BOTH_YAML)
    command = ["onnx", "export", "flux", "before", "--policy", "both.yaml", "--store", str(masks), "--json"]
    with chdir(tmp_path):
        done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert json.loads(done.stdout)["bits_off"] == plan.masks.count.masked
    assert bytes_in(tmp_path / "after") == bytes_in(tmp_path / "before")
    assert sorted(bytes_in(tmp_path / "after")) == ["model.onnx", "model.onnx.data"]
    assert bytes_in(plain.parent) == before

    after = tmp_path / "after" / "model.onnx"
    assert_runs_like(after, guarded)
    assert np.abs(run(after, inputs_of(small)) - run(plain, inputs_of(small))).max() > 0.01
    told = facts(after)
    assert told["format"] == FORMAT
    assert told["base"] == fingerprint(small) == plan.base
    assert told["policies"] == [{"name": "both", "sha256": BOTH.digest}]
    assert told["masks_sha256"] == digest(plan.masks)

    left = read_model(after)
    del left.metadata_props[:]
    base = read_model(plain)
    for model in (left, base):  # the few tensors that lie in the model file itself
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
    assert left == base


def test_two_guards_are_told_with_the_masks_of_both(small, masks):
    model = copy.deepcopy(small)
    plans = [guard(model, policy, store=masks).plan for policy in (BLADES, SPIRITS)]
    told = json.loads(Stamp.of(plans, "both").metadata[KEY])
    assert [policy["name"] for policy in told["policies"]] == ["blades-only", "spirits-only"]
    assert told["masks_sha256"] == digest(compose(*(plan.masks for plan in plans)))


@pytest.mark.thorough  # the tests above export a smaller model of the same class
def test_the_embedded_model_with_its_own_policy(tmp_path):
    done = CliRunner().invoke(
        main, ["onnx", "export", NAME, str(tmp_path / "guarded"), "--json"], catch_exceptions=False
    )
    pipe = load_pipeline()
    handle = guard(pipe)
    assert json.loads(done.stdout)["bits_off"] == handle.plan.masks.count.masked
    assert_runs_like(tmp_path / "guarded" / "model.onnx", pipe.transformer, [(2, 64, 24)])
    after = tensors(tmp_path / "guarded" / "model.onnx")
    for name, parameter in pipe.transformer.named_parameters():
        assert np.array_equal(after[name], parameter.detach().numpy()), name


def test_flux2(make_meta, tmp_path):
    torch.manual_seed(0)
    model = Flux2Transformer2DModel(**FEWEST, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4)).eval()
    draw = torch.Generator().manual_seed(0)
    bits = MaskSet({site.name: torch.rand(site.shape, generator=draw) >= 0.1 for site in find_sites(model).values()})
    save_masks(tmp_path / "blades.safetensors", bits, make_meta(family="flux2", fingerprint=fingerprint(model)))
    export_onnx(model, tmp_path / "plain")
    assert_runs_like(tmp_path / "plain" / "model.onnx", model)
    bake(tmp_path / "plain" / "model.onnx", tmp_path / "masked", BLADES, store=tmp_path)
    guard(model, BLADES, store=tmp_path)
    assert_runs_like(tmp_path / "masked" / "model.onnx", model)


def test_what_is_not_exported(small, masks, tmp_path):
    wrapped = copy.deepcopy(small)
    wrapped.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    degraded = copy.deepcopy(small)
    guard(degraded, BOTH, store=masks)
    degraded.load_state_dict(small.state_dict())
    undecided = copy.deepcopy(small)
    undecided.x_embedder.register_forward_hook(lambda module, args, out: out if out.sum() > 0 else -out)
    cases = [
        (wrapped, "adapter tensor .* is on the model"),
        (degraded, "policy 'both' is DEGRADED, not GUARDED"),
        (torch.nn.Linear(2, 2), "this is not a FLUX model"),
        (copy.deepcopy(small).to("meta"), "holds no values"),
        (undecided, "torch cannot export this FluxTransformer2DModel to ONNX: Could not guard"),
    ]
    for model, message in cases:
        with pytest.raises(ModelError, match=message):
            export_onnx(model, tmp_path / "flux")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("missing", "room"), [("onnx", "checkpoints.onnx_model"), ("onnxscript", "convert.onnx_export")]
)
def test_what_is_not_installed_is_named(missing, room, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, f"safeflux.{room}")
    with pytest.raises(ConfigError, match=r"pip install 'safeflux\[onnx\]'"):
        importlib.import_module(f"safeflux.{room}")


def test_the_cpu_is_always_there():
    assert providers()[-1] == "CPUExecutionProvider"
    assert set(providers()) <= set(onnxruntime.get_available_providers())
