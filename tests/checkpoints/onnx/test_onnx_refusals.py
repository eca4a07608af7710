"""ONNX models and targets that are refused: one clear error each, and nothing written."""

import numpy as np
import onnx
import onnxscript.optimizer
import pytest

from safeflux.baking.bake import bake
from safeflux.checkpoints.onnx_model import read_model
from safeflux.convert.onnx_export import export_onnx
from safeflux.errors import BakeError, MaskMismatchError, ModelError, PolicyError
from safeflux.policy.load import Action, Category, Policy
from tests.helpers.onnx_running import tensors
from tests.helpers.policies import BLADES, BOTH, SPIRITS

NOTHING = Policy(name="nothing", categories={"weapons": Category(action=Action.AUDIT, masks=("blades",))})


def drop_data(path):
    path.with_name("model.onnx.data").unlink()


def truncate(path):
    data = path.with_name("model.onnx.data")
    data.write_bytes(data.read_bytes()[:-1])


def change(path, what):
    model = read_model(path)
    what(model)
    onnx.save(model, path)


def rename_one(model):
    """As the older exporter of torch does, which folds a transpose into every matrix."""
    tensor = next(one for one in model.graph.initializer if one.name == "transformer_blocks.0.ff.net.0.proj.weight")
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = "onnx::MatMul_412" if name == tensor.name else name
    tensor.name = "onnx::MatMul_412"


def rename_all(model):
    for number, tensor in enumerate(model.graph.initializer):
        tensor.name = f"onnx::MatMul_{number}"


def unread(model):
    """The weight is there by its name, and the graph reads a folded copy of it."""
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = "folded" if name == "context_embedder.weight" else name


def quantise(model):
    model.graph.initializer[0].data_type = onnx.TensorProto.FLOAT8E4M3FN


def shorten(model):
    external = next(one for one in model.graph.initializer if one.external_data)
    next(entry for entry in external.external_data if entry.key == "length").value = "4"


def lose_length(model):
    external = next(one for one in model.graph.initializer if one.external_data)
    del external.external_data[1:]


def negative(model):
    external = next(one for one in model.graph.initializer if one.external_data)
    next(entry for entry in external.external_data if entry.key == "offset").value = "-4"


def escape(model):
    for tensor in model.graph.initializer:
        if tensor.external_data:
            tensor.external_data[0].value = "../copied/model.onnx.data"


def grow(model):
    tensor = next(one for one in model.graph.initializer if one.name == "x_embedder.weight")
    tensor.dims.append(1)


REFUSED = [
    (lambda path: path.unlink(), r"model\.onnx: does not exist"),
    (lambda path: path.write_bytes(b"no model at all"), r"model\.onnx: cannot be read as an ONNX model"),
    (lambda path: path.write_bytes(b""), "got a file without a graph"),
    (drop_data, r"model\.onnx\.data: does not exist"),
    (truncate, r"model\.onnx\.data: truncated, expected at least \d+ bytes"),
    (lambda path: change(path, rename_one), r"'transformer_blocks.0.ff.net.0.proj.weight' is missing.*export_onnx"),
    (lambda path: change(path, rename_all), "are not the parameters of a FLUX transformer.*export_onnx"),
    (
        lambda path: change(path, unread),
        "'context_embedder.weight': expected a linear layer to read it, found nothing",
    ),
    (lambda path: change(path, quantise), "expected a plain float type, got FLOAT8E4M3FN.*export_onnx"),
    (lambda path: change(path, shorten), r"expected \d+ bytes of raw data for shape .* got 4"),
    (lambda path: change(path, lose_length), "expected location, offset and length"),
    (lambda path: change(path, negative), "expected location, offset and length"),
    (lambda path: change(path, escape), r"expected data files next to it, got '\.\./copied"),
    (lambda path: change(path, grow), r"'x_embedder.weight': expected a vector or a matrix"),
]


@pytest.mark.parametrize(("damage", "message"), REFUSED)
def test_what_is_refused_before_anything_is_written(damage, message, copied, masks, tmp_path):
    damage(copied)
    with pytest.raises(ModelError, match=message):
        bake(copied, tmp_path / "masked", BOTH, store=masks)
    assert [path.name for path in tmp_path.iterdir()] == ["copied"]


def test_the_optimizer_of_the_exporter_loses_names_so_its_models_are_refused(plain, masks, tmp_path):
    onnx.save(onnxscript.optimizer.optimize(onnx.load(plain)), tmp_path / "model.onnx")
    assert not tensors(plain).keys() <= tensors(tmp_path / "model.onnx").keys()
    with pytest.raises(ModelError, match="export_onnx"):
        bake(tmp_path / "model.onnx", tmp_path / "masked", BOTH, store=masks)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_targets_that_are_refused_stay_as_they_are(small, plain, masks, tmp_path):
    there = tmp_path / "there"
    there.write_text("mine")
    for write in (lambda to: bake(plain, to, BOTH, store=masks), lambda to: export_onnx(small, to)):
        for target in (there, plain, plain.parent):
            with pytest.raises(BakeError, match=r"(already exists|is the source itself); choose another name"):
                write(target)
        with pytest.raises(BakeError, match="nowhere does not exist; create it first"):
            write(tmp_path / "nowhere" / "flux")
    assert there.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_models_that_are_guarded_already_and_other_bases_are_refused(plain, masks, tmp_path):
    bake(plain, tmp_path / "once", BLADES, store=masks)
    with pytest.raises(ModelError, match="is already guarded"):
        bake(tmp_path / "once" / "model.onnx", tmp_path / "twice", SPIRITS, store=masks)
    change(tmp_path / "once" / "model.onnx", lambda model: model.metadata_props.pop())
    data = tmp_path / "once" / "model.onnx.data"
    data.write_bytes(np.flip(np.frombuffer(data.read_bytes(), np.float32)).tobytes())
    with pytest.raises(MaskMismatchError, match="blades"):
        bake(tmp_path / "once" / "model.onnx", tmp_path / "twice", BLADES, store=masks)
    with pytest.raises(PolicyError, match="enforces no category"):
        bake(plain, tmp_path / "twice", NOTHING, store=masks)
    assert not (tmp_path / "twice").exists()


def test_a_model_with_an_attention_mask_is_not_exported(chroma_transformer, tmp_path):
    with pytest.raises(ModelError, match=r"ChromaTransformer2DModel takes an attention mask.*`safeflux bake`"):
        export_onnx(chroma_transformer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
