"""GGUF files: only masked bytes differ, and what is read from them is the source with zeros where masks say so."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file

from safeflux.baking.bake import bake, check_bake
from safeflux.baking.verify import verify_files
from safeflux.checkpoints.checkpoint import Checkpoint
from safeflux.checkpoints.gguf_file import GgufFile
from safeflux.cli import main
from safeflux.errors import BakeError, ConfigError, ModelError
from safeflux.families.fingerprint import TOLERANCE, distance, same_base
from safeflux.model.guard import guard
from safeflux.model.weights import fingerprint
from safeflux.plan.status import State
from tests.helpers.ggufs import READABLE, read_gguf, write_gguf
from tests.helpers.layouts import to_bfl
from tests.helpers.policies import BLADES, BOTH, SPIRITS

Q8, PLAIN = GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16
PACKED = [GGMLQuantizationType[name] for name in ("Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")]
SINGLE = [GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q4_0", "MXFP4")]
"""Types in which a single number can be zero."""


def test_these_are_all_types_that_can_be_read():
    others = {kind for kind, (block, _) in GGML_QUANT_SIZES.items() if block > 1} - set(READABLE)
    assert others
    for kind in others:
        with pytest.raises(NotImplementedError):
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)


@pytest.mark.parametrize("kind", READABLE)
def test_rows_of_zero_bytes_are_zeros_and_the_others_stay(kind):
    draw = np.random.default_rng(0)
    rows = draw.integers(0, 256, (8, 4 * GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    masked = rows.copy()
    masked[2:4] = 0
    with np.errstate(all="ignore"):
        before, after = dequantize(rows, kind), dequantize(masked, kind)
    assert not after[2:4].any()
    assert before[2:4].any()
    assert np.array_equal(np.delete(before, [2, 3], 0), np.delete(after, [2, 3], 0), equal_nan=True)


def masked_like(before, plain, guarded):
    """What must be read: the source, with zeros where a guard in memory makes zeros."""
    return {name: np.where((guarded[name] == 0) & (plain[name] != 0), 0, values) for name, values in before.items()}


@pytest.fixture
def zeros(base_transformer, store):
    """The small model before and after a guard of both mask sets, as BFL has it."""
    model = copy.deepcopy(base_transformer)
    guard(model, BOTH, store=store)
    return {n: t.numpy() for n, t in to_bfl(base_transformer).items()}, {n: t.numpy() for n, t in to_bfl(model).items()}


@pytest.mark.parametrize("alignment", [32, 64])
@pytest.mark.parametrize("kind", SINGLE)
def test_neurons_and_weights_are_zero_and_all_else_is_as_it_was(
    base_transformer, zeros, store, tmp_path, kind, alignment
):
    source = write_gguf(tmp_path / "flux.gguf", to_bfl(base_transformer), kind, alignment)
    target = tmp_path / "guarded.gguf"
    bake(source, target, BOTH, store=store)
    before, after = read_gguf(source), read_gguf(target)
    expected = masked_like(before, *zeros)
    assert list(after) == list(before)
    assert all(np.array_equal(after[name], values) for name, values in expected.items())
    old, new = GGUFReader(source), GGUFReader(target)
    assert json.loads(new.fields.pop("safeflux").contents())["policies"][0]["name"] == BOTH.name
    del old.fields["GGUF.kv_count"], new.fields["GGUF.kv_count"]
    assert {k: field.contents() for k, field in old.fields.items()} == {k: f.contents() for k, f in new.fields.items()}
    assert new.data_offset % alignment == 0
    differ = (
        np.fromfile(source, np.uint8)[old.data_offset :] != np.fromfile(target, np.uint8)[new.data_offset :]
    ).sum()
    assert check_bake(source, target, BOTH, store=store).num_changed_bytes == differ > 0
    assert verify_files(target, BOTH, store=store).status.state is State.GUARDED
    bake(source, tmp_path / "again.gguf", BOTH, store=store)
    assert (tmp_path / "again.gguf").read_bytes() == target.read_bytes()


def test_in_q8_only_the_codes_of_masked_numbers_change(base_transformer, store, tmp_path):
    source = write_gguf(tmp_path / "flux.gguf", to_bfl(base_transformer), Q8)
    bake(source, tmp_path / "guarded.gguf", SPIRITS, store=store, form="columns")
    files = [GGUFReader(path) for path in (source, tmp_path / "guarded.gguf")]
    before, after = ({each.name: each.data for each in file.tensors} for file in files)
    name = "double_blocks.0.img_mlp.2.weight"
    changed = (before[name] != after[name]).any(axis=0)
    assert changed.any()
    assert not changed.reshape(-1, 34)[:, :2].any(), "a scale"
    assert np.array_equal(before["double_blocks.0.img_mlp.0.weight"], after["double_blocks.0.img_mlp.0.weight"])


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("kind", PACKED)
def test_rows_are_zero_in_every_type(base_transformer, store, tmp_path, kind, prefix):
    source = write_gguf(tmp_path / "flux.gguf", to_bfl(base_transformer, prefix), kind)
    bake(source, tmp_path / "guarded.gguf", SPIRITS, store=store, form="rows")
    model = copy.deepcopy(base_transformer)
    guard(model, SPIRITS, store=store)
    masked = to_bfl(model, prefix)
    before, after = read_gguf(source), read_gguf(tmp_path / "guarded.gguf")
    plain = to_bfl(base_transformer, prefix)
    for name, values in before.items():
        expected = values.copy()
        if not name.endswith(("mlp.2.weight", "linear2.weight")):  # these have the columns
            off = [bool(new.any() < old.any()) for new, old in zip(masked[name], plain[name], strict=True)]
            expected[off] = 0
        assert np.array_equal(after[name], expected), name
    assert sum(not np.array_equal(after[name], values) for name, values in before.items()) > 10
    check_bake(source, tmp_path / "guarded.gguf", SPIRITS, store=store, form="rows")
    assert verify_files(tmp_path / "guarded.gguf", SPIRITS, store=store).status.state is State.GUARDED
    assert verify_files(source, SPIRITS, store=store, base=source).status.state is State.UNGUARDED


@pytest.mark.parametrize("kind", [kind for kind in PACKED if kind not in SINGLE])
def test_what_a_type_cannot_do_is_refused_with_the_way_out(base_transformer, store, tmp_path, kind):
    source = write_gguf(tmp_path / "flux.gguf", to_bfl(base_transformer), kind)
    for policy, message in (
        (
            SPIRITS,
            rf"site '.*' masks columns of it, but in {kind.name} only whole rows .*--form rows, or bake the model",
        ),
        (BLADES, rf"'.*:weight' masks single weights of it, but in {kind.name} .*\. Bake the model before it is quant"),
    ):
        with pytest.raises(ModelError, match=message):
            bake(source, tmp_path / "guarded.gguf", policy, store=store)
    assert not list(tmp_path.glob("*guarded*"))


@pytest.mark.parametrize("kind", [Q8, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q5_1])
def test_a_model_that_was_quantised_after_it_was_baked_is_found_guarded(bfl, store, tmp_path, kind):
    bake(bfl, tmp_path / "guarded.safetensors", SPIRITS, store=store)
    made = write_gguf(tmp_path / "guarded.gguf", load_file(tmp_path / "guarded.safetensors"), kind)
    assert verify_files(made, SPIRITS, store=store, base=bfl).status.state is State.GUARDED


@pytest.mark.parametrize("kind", PACKED)
def test_a_fingerprint_survives_a_quantiser_and_still_tells_other_weights(
    transformer, other_transformer, tmp_path, kind
):
    def found(model):
        return Checkpoint.open(write_gguf(tmp_path / "flux.gguf", to_bfl(model), kind)).fingerprint

    prints = found(transformer), fingerprint(transformer)
    end = f"-q{kind.name[1]}"
    assert prints[0].endswith(end)
    assert same_base(*prints)
    assert same_base(*reversed(prints))
    assert distance(*prints) < TOLERANCE[end] * 0.8
    assert not same_base(found(other_transformer), prints[1])
    tuned = copy.deepcopy(transformer)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 2 * TOLERANCE[end] * parameter.std() * torch.randn(parameter.shape)
    assert not same_base(prints[0], fingerprint(tuned))
    assert not same_base(found(tuned), prints[1])


def test_numbers_that_are_no_blocks_of_rows_are_refused(base_transformer, store, tmp_path):
    bias = "double_blocks.0.img_mod.lin.bias"
    write_gguf(tmp_path / "flux.gguf", to_bfl(base_transformer), PLAIN, special={bias: Q8})
    with pytest.raises(ModelError, match=r"'double_blocks\.0\.img_mod\.lin\.bias': expected float weights, got Q8_0"):
        bake(tmp_path / "flux.gguf", tmp_path / "guarded.gguf", SPIRITS, store=store)


def test_the_commands_take_gguf(base_transformer, store, tmp_path):
    source = write_gguf(tmp_path / "flux.gguf", to_bfl(base_transformer), Q8)
    policy = tmp_path / "spirits.yaml"
    policy.write_text(
        "apiVersion: safeflux/v1\nkind: Policy\nname: spirits\ncategories: {alcohol: {masks: [spirits]}}\n"
    )
    asked = ["--policy", str(policy), "--store", str(store)]
    run = CliRunner().invoke
    assert run(main, ["bake", str(source), str(tmp_path / "to.gguf"), *asked], catch_exceptions=False).exit_code == 0
    assert "exactly what" in run(main, ["bake", str(source), str(tmp_path / "to.gguf"), "--check", *asked]).stdout
    assert "to.gguf: GUARDED" in run(main, ["verify", str(tmp_path / "to.gguf"), *asked]).stdout
    with pytest.raises(BakeError, match=r"expected a name that ends in \.gguf"):
        bake(source, tmp_path / "to.safetensors", SPIRITS, store=store)


def test_without_the_package_there_is_one_clear_error(base_transformer, tmp_path, monkeypatch):
    source = write_gguf(tmp_path / "flux.gguf", to_bfl(base_transformer), Q8)
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    monkeypatch.delitem(sys.modules, GgufFile.__module__)
    with pytest.raises(ConfigError, match=r"GGUF files need the package gguf.*pip install 'safeflux\[gguf\]'"):
        Checkpoint.open(source)
