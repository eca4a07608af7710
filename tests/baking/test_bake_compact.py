"""`bake(..., compact=True)`: what it writes is what a guard that cuts neurons out would save."""

import copy
import json

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from safeflux.baking.bake import bake, check_bake
from safeflux.baking.verify import verify_files
from safeflux.cli import main
from safeflux.convert.load_compact import load_compact
from safeflux.errors import BakeError, ModelError
from safeflux.model.guard import guard
from tests.helpers.policies import BLADES, BOTH

FILES = {"one file": "5GB", "shards": "40KB"}


@pytest.fixture(params=FILES.values(), ids=FILES.keys())
def folder(request, tmp_path, base_transformer):
    base_transformer.save_pretrained(tmp_path / "model" / "transformer", max_shard_size=request.param)
    return tmp_path / "model"


def test_what_is_baked_is_what_a_compacting_guard_makes(folder, base_transformer, heavy_store, bits_of):
    target, model = folder.parent / "small", copy.deepcopy(base_transformer)
    guard(model, BOTH, store=heavy_store, compact=True)
    made = bake(folder, target, BOTH, store=heavy_store, compact=True)
    loaded = load_compact(target)
    assert bits_of(loaded) == bits_of(model)
    assert loaded.config["safeflux_widths"] == model.config["safeflux_widths"] != {}
    files = sorted((target / "transformer").glob("*.safetensors"))
    size = sum(tensor.nbytes for file in files for tensor in load_file(file).values())
    assert size == sum(parameter.nbytes for parameter in model.parameters())
    for index in (target / "transformer").glob("*.index.json"):
        assert json.loads(index.read_text())["metadata"]["total_size"] == size
    assert len(files) == len(list((folder / "transformer").glob("*.safetensors")))
    checked = check_bake(folder, target, BOTH, store=heavy_store, compact=True)
    gone = sum(parameter.nbytes for parameter in base_transformer.parameters()) - size
    assert checked.num_changed_bytes > gone > 0
    assert made.num_masked_tensors == checked.num_masked_tensors


def test_the_same_model_is_saved_by_diffusers_byte_for_byte(tmp_path, base_transformer, heavy_store):
    base_transformer.save_pretrained(tmp_path / "model")
    bake(tmp_path / "model", tmp_path / "small", BOTH, store=heavy_store, compact=True)
    load_compact(tmp_path / "small").save_pretrained(tmp_path / "again")
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("small", "again"))
    assert ours == theirs


def test_a_change_of_any_file_is_found(folder, heavy_store):
    target = folder.parent / "small"
    bake(folder, target, BOTH, store=heavy_store, compact=True)
    for path in sorted(path for path in target.rglob("*") if path.is_file()):
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(BakeError, match=r"differs from|is not what it should be"):
            check_bake(folder, target, BOTH, store=heavy_store, compact=True)
        path.write_bytes(before)
    with pytest.raises(BakeError, match="its header does not match these masks"):
        check_bake(folder, target, BOTH, store=heavy_store)


def test_what_has_no_configuration_or_no_neurons_to_cut_is_told(folder, bfl, heavy_store, tmp_path):
    with pytest.raises(BakeError, match=r"expected a diffusers folder to compact, got one file"):
        bake(bfl, tmp_path / "small.safetensors", BOTH, store=heavy_store, compact=True)
    with pytest.raises(BakeError, match="--compact removes neurons, so --form rows has no meaning"):
        bake(folder, tmp_path / "small", BOTH, store=heavy_store, form="rows", compact=True)
    bake(folder, tmp_path / "small", BLADES, store=heavy_store, compact=True)
    assert load_compact(tmp_path / "small").config["safeflux_widths"] == {}


def test_the_command_compacts_and_a_damaged_configuration_is_one_clear_error(folder, heavy_store, tmp_path):
    (tmp_path / "own.yaml").write_text(
        "apiVersion: safeflux/v1\nkind: Policy\nname: own\ncategories: {alcohol: {masks: [spirits]}}\n"
    )
    asked = ["--policy", str(tmp_path / "own.yaml"), "--store", str(heavy_store), "--compact"]
    done = CliRunner().invoke(main, ["bake", str(folder), str(tmp_path / "small"), *asked], catch_exceptions=False)
    assert done.stdout.rstrip().endswith("(compact)")
    with pytest.raises(ModelError, match=r"is compacted.*safeflux bake SRC .* --compact --check"):
        verify_files(tmp_path / "small", tmp_path / "own.yaml", store=heavy_store)
    (folder / "transformer" / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read as JSON \(expected a mapping, got list\)"):
        bake(folder, tmp_path / "again", BOTH, store=heavy_store, compact=True)
    assert not (tmp_path / "again").exists()
