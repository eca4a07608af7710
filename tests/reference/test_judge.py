"""The judge's features: what the last layer reads, and nothing that changes the logits."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from benchmarks.emoji_flux.judge import expose_features_
from safeflux.reference.judge import JUDGE, Judge

IMAGES = np.random.default_rng(0).random((6, 3, 64, 64), dtype=np.float32)


@pytest.fixture(scope="module")
def model():
    return onnx.load(JUDGE)


def unfused(graph: onnx.ModelProto) -> list[np.ndarray]:
    """Run the graph node by node: fusing depends on the outputs and the processor, and changes the last bits."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph.SerializeToString(), options).run(None, {"images": IMAGES})


def test_the_last_layer_makes_the_logits_from_the_features(model):
    weights = {one.name: numpy_helper.to_array(one).astype(np.float32) for one in model.graph.initializer}
    last = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
    matrix, bias = (weights.get(name, weights.get(f"{name}.half")) for name in last.input[1:])
    verdicts = Judge()(IMAGES)
    assert verdicts.features.dtype == np.float32
    assert verdicts.features.shape == (6, matrix.shape[1])
    logits = np.concatenate([verdicts.concepts, verdicts.styles, verdicts.backgrounds], axis=1)
    np.testing.assert_allclose(verdicts.features @ matrix.T + bias, logits, rtol=1e-4, atol=1e-4)


def test_the_recipe_exposes_the_features_and_leaves_every_bit_of_the_logits(model):
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    (features,) = (output for output in plain.graph.output if output.name == "features")
    plain.graph.output.remove(features)
    for node in plain.graph.node:
        for names in (node.input, node.output):
            names[:] = ["hidden" if name == "features" else name for name in names]
    features.name = "hidden"
    plain.graph.value_info.append(features)
    before = unfused(plain)
    weights = [one.SerializeToString() for one in plain.graph.initializer]
    expose_features_(plain.graph)
    onnx.checker.check_model(plain)
    assert [one.SerializeToString() for one in plain.graph.initializer] == weights
    *after, exposed = unfused(plain)
    for one, other in zip(after, before, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(exposed, Judge()(IMAGES).features, rtol=1e-4, atol=1e-4)
