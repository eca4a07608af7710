"""Masks into ONNX models as they come: other names, orientations, types and files; all or nothing."""

import copy
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper

from safeflux.baking.bake import bake
from safeflux.baking.verify import verify_files
from safeflux.cli import main
from safeflux.errors import ModelError, PolicyError
from safeflux.model.guard import guard
from safeflux.plan.lock import Lock
from safeflux.plan.status import State
from tests.helpers.onnx_running import assert_runs_like, bytes_in, tensors
from tests.helpers.policies import BLADES, BOTH


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model as another exporter may write it: transposed weights, a prefix, all data in one file."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    into = {}
    for node in list(model.graph.node):
        weight = values.get(node.input[0] if node.op_type == "Transpose" else node.input[1] if node.input[1:] else "")
        if weight is None or len(weight.dims) != 2:
            continue
        if node.op_type == "Transpose":
            into[node.output[0]] = weight.name
            model.graph.node.remove(node)
        else:
            next(attribute for attribute in node.attribute if attribute.name == "transB").i = 0
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), weight.name))
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            name = into.get(name, name)
            node.input[index] = f"flux.transformer.{name}" if name in values else name
    for tensor in model.graph.initializer:
        tensor.name = f"flux.transformer.{tensor.name}"
    return model


def test_a_model_with_a_prefix_and_transposed_weights_in_one_file(small, guarded, plain, masks, tmp_path):
    source = tmp_path / "other.onnx"
    onnx.save(rewritten(onnx.load(plain)), source)
    assert_runs_like(source, small)
    bake(source, tmp_path / "masked", BOTH, store=masks)
    assert_runs_like(tmp_path / "masked" / "other.onnx", guarded)
    before, after, wanted = (
        tensors(source),
        tensors(tmp_path / "masked" / "other.onnx"),
        dict(guarded.named_parameters()),
    )
    assert before.keys() == after.keys()
    for name, values in after.items():
        expected = wanted[name.removeprefix("flux.transformer.")].detach().numpy()
        assert np.array_equal(values, expected.T if values.ndim == 2 else expected), name


def test_every_tensor_in_a_data_file_of_its_own_and_in_bfloat16(guarded, plain, masks, tmp_path):
    model, source = onnx.load(plain), tmp_path / "in" / "model.onnx"
    for tensor in model.graph.initializer:
        values = torch.from_numpy(numpy_helper.to_array(tensor).copy()).bfloat16()
        tensor.data_type, tensor.raw_data = onnx.TensorProto.BFLOAT16, values.view(torch.uint8).numpy().tobytes()
    source.parent.mkdir()
    onnx.save(model, source, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    bake(source, tmp_path / "out", BOTH, store=masks)
    assert bytes_in(tmp_path / "out").keys() == bytes_in(source.parent).keys()
    after = {tensor.name: tensor.raw_data for tensor in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    for name, parameter in guarded.named_parameters():
        assert after[name] == parameter.detach().bfloat16().view(torch.uint8).numpy().tobytes(), name


def test_a_lock_holds_for_files_too(small, plain, masks, tmp_path):
    lock = tmp_path / "safeflux.lock"
    Lock.of(guard(copy.deepcopy(small), BLADES, store=masks, dry_run=True).plan).write(lock)
    bake(plain, tmp_path / "blades", BLADES, store=masks, lock=lock)
    with pytest.raises(PolicyError, match="locked"):
        bake(plain, tmp_path / "both", BOTH, store=masks, lock=lock)
    assert not (tmp_path / "both").exists()


ENDLESS = """
import itertools, sys
from pathlib import Path
from safeflux import bake
from tests.helpers.policies import BOTH
source, target, store = map(Path, sys.argv[1:])
for number in itertools.count():
    bake(source, target, BOTH, store=store)
    target.rename(store / f"done-{number}")
"""


def test_a_kill_leaves_the_whole_folder_or_none(plain, masks, tmp_path):
    target, whole, done = tmp_path / "masked", tmp_path / "whole", tmp_path / "done"
    bake(plain, whole, BOTH, store=masks)
    for milliseconds in (0, 1, 2, 4, 8):
        shutil.copytree(masks, done)
        arguments = [sys.executable, "-c", ENDLESS, str(plain), str(target), str(done)]
        with subprocess.Popen(arguments) as process:
            while process.poll() is None and not list(tmp_path.glob(".masked.*.partial")):
                pass
            time.sleep(milliseconds / 1000)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        if target.exists():
            assert bytes_in(target) == bytes_in(whole)
            shutil.rmtree(target)
        assert milliseconds or list(tmp_path.glob(".masked.*.partial"))
        shutil.rmtree(done)
    bake(plain, target, BOTH, store=masks)  # clears what the killed have left
    assert bytes_in(target) == bytes_in(whole)
    assert not list(tmp_path.glob(".*"))


def test_what_was_masked_is_verified_and_one_weight_that_is_on_is_found(plain, masks, tmp_path):
    path = tmp_path / "masked" / "model.onnx"
    bake(plain, path.parent, BOTH, store=masks)
    found = verify_files(path, BOTH, store=masks)
    assert found.status.state is State.GUARDED
    assert all(amount.requested == amount.in_force for amount in found.status.sites.values())
    with pytest.raises(ModelError, match=r"has no stamp of safeflux with its base model"):
        verify_files(plain, BOTH, store=masks)
    model = onnx.load(path)
    name = "transformer_blocks.0.norm1_context.linear.bias"
    bias = next(each for each in model.graph.initializer if each.name == name)
    values = numpy_helper.to_array(bias).copy()
    values[values == 0] = 1e-6
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "edited.onnx")
    asked = ["verify", str(tmp_path / "edited.onnx"), "--policy", str(tmp_path / "own.yaml"), "--store", str(masks)]
    (tmp_path / "own.yaml").write_text(
        "apiVersion: safeflux/v1\nkind: Policy\nname: own\ncategories: {alcohol: {masks: [spirits]}}\n"
    )
    done = CliRunner().invoke(main, [*asked, "--json"], catch_exceptions=False)
    told = json.loads(done.stdout)
    assert (done.exit_code, told["state"]) == (1, "DEGRADED")
    assert told["faults"][0].startswith("site 'transformer_blocks.0.norm1_context:norm': ")
