"""`safeflux bake` of ONNX models: in any form, and a check of every byte."""

import copy
import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from safeflux.baking.bake import bake, check_bake
from safeflux.baking.verify import verify_files
from safeflux.checkpoints.onnx_model import is_external, read_model
from safeflux.cli import main
from safeflux.convert.onnx_export import export_onnx
from safeflux.errors import BakeError, ModelError
from safeflux.model.guard import guard
from safeflux.plan.status import State
from tests.checkpoints.onnx.test_onnx_job import rewritten
from tests.helpers.onnx_running import bytes_in, inputs_of, run, tensors
from tests.helpers.policies import BOTH, SPIRITS


def asked_of(folder, masks):
    (folder / "own.yaml").write_text(
        "apiVersion: safeflux/v1\nkind: Policy\nname: own\ncategories: {alcohol: {masks: [spirits]}}\n"
    )
    return ["--policy", str(folder / "own.yaml"), "--store", str(masks)]


def test_the_command_writes_and_checks(plain, masks, tmp_path):
    command = ["bake", str(plain), str(tmp_path / "baked"), *asked_of(tmp_path, masks), "--json"]
    assert CliRunner().invoke(main, command, catch_exceptions=False).exit_code == 0
    told = json.loads(CliRunner().invoke(main, [*command, "--check"], catch_exceptions=False).stdout)
    before, after = tensors(plain), tensors(tmp_path / "baked" / "model.onnx")
    pairs = [(before[name].view(np.uint8), after[name].view(np.uint8)) for name in before]
    assert told["changed_bytes"] == sum(np.count_nonzero(a != b) for a, b in pairs) > 0
    assert told["masked_tensors"] == sum(bool((a != b).any()) for a, b in pairs)
    assert told["bytes"] == sum(map(len, bytes_in(tmp_path / "baked").values()))


@pytest.fixture(params=["beside it", "in it, transposed"])
def source(request, plain, tmp_path):
    """A model with its data in a file beside it, or in itself."""
    if request.param == "beside it":
        return plain
    onnx.save(rewritten(onnx.load(plain)), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_one_changed_byte_of_any_file_is_found(source, masks, tmp_path):
    target = tmp_path / "masked"
    made = bake(source, target, BOTH, store=masks)
    checked = check_bake(source, target, BOTH, store=masks)
    assert (made.num_bytes, made.num_masked_tensors) == (checked.num_bytes, checked.num_masked_tensors)
    draw = np.random.default_rng(0)
    for path in target.iterdir():
        content = path.read_bytes()
        for place in (0, len(content) - 1, *draw.integers(len(content), size=20)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(BakeError, match=r"differs from the result of these masks|is not what it should be"):
                check_bake(source, target, BOTH, store=masks)
        for other in (content[:-1], content + b"x"):
            path.write_bytes(other)
            with pytest.raises(BakeError, match=r"differs|is not what it should be|bytes follow"):
                check_bake(source, target, BOTH, store=masks)
        path.unlink()
        with pytest.raises(BakeError, match="cannot be read"):
            check_bake(source, target, BOTH, store=masks)
        path.write_bytes(content)
    with pytest.raises(BakeError):
        check_bake(source, target, SPIRITS, store=masks)


@pytest.mark.parametrize("form", ["rows", "columns"])
def test_either_side_of_a_neuron_can_be_filled(source, small, guarded, masks, tmp_path, form):
    path = tmp_path / "masked" / source.name
    bake(source, path.parent, BOTH, store=masks, form=form)
    check_bake(source, path.parent, BOTH, store=masks, form=form)
    with pytest.raises(BakeError):
        check_bake(source, path.parent, BOTH, store=masks)
    assert verify_files(path, BOTH, store=masks).status.state is State.GUARDED
    assert json.loads(read_model(path).metadata_props[-1].value)["form"] == form
    inputs = inputs_of(small)
    bake(source, tmp_path / "both", BOTH, store=masks)
    expected = run(tmp_path / "both" / source.name, inputs)
    assert np.abs(run(path, inputs) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_what_cannot_be_done_with_a_model_is_told(plain, masks, tmp_path):
    with pytest.raises(BakeError, match=r"expected a diffusers folder to compact, got an ONNX model.*--compact"):
        bake(plain, tmp_path / "masked", BOTH, store=masks, compact=True)
    (tmp_path / "there").mkdir()
    with pytest.raises(BakeError, match="already exists; choose another name"):
        bake(plain, tmp_path / "there", BOTH, store=masks, overwrite=True)
    assert not (tmp_path / "masked").exists()


def test_an_export_whose_neurons_are_gone_says_so_and_is_not_judged(base_transformer, heavy_store, tmp_path):
    model = copy.deepcopy(base_transformer)
    guard(model, SPIRITS, store=heavy_store, compact=True)
    export_onnx(model, tmp_path / "exported")
    path = tmp_path / "exported" / "model.onnx"
    assert json.loads(read_model(path).metadata_props[-1].value)["form"] == "compact"
    with pytest.raises(ModelError, match=r"is compacted.*safeflux verify FOLDER --base MODEL"):
        verify_files(path, SPIRITS, store=heavy_store)


def change_data(path, change):
    """Change where a model says that the data of its initializers lie."""
    model = read_model(path)
    external = [tensor for tensor in model.graph.initializer if is_external(tensor)]
    change({tensor.name: {entry.key: entry for entry in tensor.external_data} for tensor in external})
    onnx.save(model, path)


def share(facts):
    one, other = (facts[f"transformer_blocks.0.{name}.net.0.proj.weight"] for name in ("ff", "ff_context"))
    one["offset"].value = other["offset"].value


def spell(facts):
    one = facts["transformer_blocks.0.ff.net.0.proj.weight"]
    one["location"].value = f"./{one['location'].value}"


def test_weights_that_share_bytes_are_refused(copied, masks, tmp_path):
    change_data(copied, share)
    with pytest.raises(ModelError, match=r"share bytes.*export the model without shared data"):
        bake(copied, tmp_path / "masked", SPIRITS, store=masks)


def test_a_data_file_that_goes_by_two_names_is_written_once(copied, plain, masks, tmp_path):
    change_data(copied, spell)
    bake(copied, tmp_path / "masked", BOTH, store=masks)
    bake(plain, tmp_path / "expected", BOTH, store=masks)
    data = [bytes_in(tmp_path / name)["model.onnx.data"] for name in ("masked", "expected")]
    assert data[0] == data[1]
