"""Detectors on real ONNX files: the judge's own, and small ones whose answers are known."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from safeflux.detectors.judge import JudgeDetector
from safeflux.detectors.onnx_file import OnnxDetector
from safeflux.detectors.opennsfw import OpenNsfwDetector
from safeflux.detectors.preprocessing import Preprocessing, make_preprocessing
from safeflux.errors import ConfigError
from safeflux.reference.judge import JUDGE, Judge
from safeflux.reference.vocabulary import vocabulary

RED, BLUE = Image.new("RGB", (40, 30), (255, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 255))


@pytest.fixture
def colours(tmp_path):
    """Writes a network that says how much of each colour a picture has, and its labels."""

    def write(shape, axes, labels="red\ngreen\nblue\n"):
        (tmp_path / "labels.txt").write_text(labels)
        pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)
        scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], 3])
        node = helper.make_node("ReduceMean", ["pixels", "axes"], ["scores"], keepdims=0)
        graph = helper.make_graph(
            [node], "colours", [pixels], [scores], [helper.make_tensor("axes", TensorProto.INT64, [2], axes)]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, tmp_path / "colours.onnx")
        return tmp_path / "colours.onnx", tmp_path / "labels.txt"

    return write


LAYOUTS = [(["b", 3, 8, 8], [2, 3]), (["b", 8, 8, 3], [1, 2]), ([1, 3, 8, 8], [2, 3]), ([2, 8, 8, 3], [1, 2])]


@pytest.mark.parametrize(("shape", "axes"), LAYOUTS)
def test_layout_size_and_batch_are_read_from_the_file(colours, shape, axes):
    detector = OnnxDetector(*colours(shape, axes))
    assert detector.concepts == ("red", "green", "blue")
    np.testing.assert_allclose(detector([RED, BLUE, RED]), [[1, 0, 0], [0, 0, 1], [1, 0, 0]], atol=1e-6)
    assert detector([]).shape == (0, 3)
    assert detector.found([RED, BLUE], ["blue", "red"]).tolist() == [[False, True], [True, False]]


def test_mean_std_activation_and_threshold_are_heeded(colours):
    files = colours(["b", 3, 8, 8], [2, 3])
    shifted = OnnxDetector(*files, Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0)))
    np.testing.assert_allclose(shifted([RED]), [[2, -1, -0.5]], atol=1e-6)
    softmax = OnnxDetector(*files, Preprocessing(activation="softmax"))([RED])
    np.testing.assert_allclose(softmax, [np.exp([1, 0, 0]) / (np.e + 2)], atol=1e-6)
    sigmoid = OnnxDetector(*files, Preprocessing(activation="sigmoid", threshold=0.74))
    np.testing.assert_allclose(sigmoid([RED]), [1 / (1 + np.exp([-1, 0, 0]))], atol=1e-6)
    assert not sigmoid.found([RED], ["red"])[0, 0]  # 0.731


def test_the_judge_is_a_detector_and_so_is_its_file(tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(vocabulary().names))
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(5)]
    judge = Judge()
    by_file = OnnxDetector(JUDGE, tmp_path / "labels.txt", Preprocessing(activation="sigmoid"))
    detector = JudgeDetector(judge)
    assert detector.concepts == by_file.concepts
    np.testing.assert_allclose(detector(images), by_file(images), atol=1e-5)
    verdicts = judge(images)
    for name in ("dagger", "cat"):
        assert list(detector.found(images, [name])[:, 0]) == list(verdicts.found([name] * 5))
    for style in vocabulary().styles:
        assert list(JudgeDetector(judge, [style]).found(images, [style])[:, 0]) == list(verdicts.in_style([style] * 5))
    assert detector([BLUE.resize((300, 200))]).tolist() == detector([BLUE]).tolist()
    np.testing.assert_allclose(detector(images), 1 / (1 + np.exp(-verdicts.concepts.astype(float))), atol=1e-6)


def test_open_nsfw_scores_plain_pictures():
    detector = OpenNsfwDetector()
    scores = detector([RED, BLUE])
    assert scores.shape == (2, 2)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    assert detector.found([BLUE], ["sfw", "nsfw"]).tolist() == [[True, False]]


def test_each_mistake_has_one_clear_error(colours, tmp_path):
    model, labels = colours(["b", 3, 8, 8], [2, 3])
    with pytest.raises(ConfigError, match=r"none\.onnx: does not exist"):
        OnnxDetector(tmp_path / "none.onnx", labels)
    with pytest.raises(ConfigError, match=r"labels\.txt: cannot be read as an ONNX model"):
        OnnxDetector(labels, labels)
    with pytest.raises(ConfigError, match=r"none\.txt: cannot be read; expected a text file"):
        OnnxDetector(model, tmp_path / "none.txt")
    with pytest.raises(ConfigError, match=r"'blu': .*did you mean 'blue'"):
        OnnxDetector(model, labels).found([RED], ["blu"])
    with pytest.raises(ConfigError, match=r"takes pictures of \(8, 8\), but the size \(9, 9\)"):
        OnnxDetector(model, labels, Preprocessing(size=(9, 9)))


@pytest.mark.parametrize("labels", ["red\ngreen\n", "red\ngreen\nblue\nviolet\n"])
def test_as_many_labels_as_outputs(colours, labels):
    with pytest.raises(ConfigError, match=rf"output of {labels.count(chr(10))} labels, got 3"):
        OnnxDetector(*colours(["b", 3, 8, 8], [2, 3], labels))


@pytest.mark.parametrize("labels", ["red\n\nblue\n", "red\nblue\nred\n"])
def test_labels_are_distinguished(colours, labels):
    with pytest.raises(ConfigError, match=r"labels\.txt:[23]: expected a label"):
        OnnxDetector(*colours(["b", 3, 8, 8], [2, 3], labels))


@pytest.mark.parametrize(("shape", "axes"), [(["b", 3, 8], [1, 2]), (["b", 4, 8, 8], [2, 3])])
def test_an_input_that_is_no_batch_of_pictures_is_refused(colours, shape, axes):
    with pytest.raises(ConfigError, match=r"expected one float input of rank 4.*got pixels"):
        OnnxDetector(*colours(shape, axes))


def test_a_free_size_has_to_be_given(colours):
    files = colours(["b", 3, "h", "w"], [2, 3])
    with pytest.raises(ConfigError, match="leaves the picture's size free"):
        OnnxDetector(*files)
    assert OnnxDetector(*files, Preprocessing(size=(5, 7)))([RED]).tolist() == [[1, 0, 0]]


def test_preprocessing_from_texts():
    texts = {"size": "224,320", "mean": "0.1,0.2,0.3", "std": "1,2,3", "activation": "softmax", "threshold": "0.7"}
    expected = Preprocessing((224, 320), (0.1, 0.2, 0.3), (1, 2, 3), "softmax", 0.7)
    assert make_preprocessing(texts) == expected
    wrong = {"size": "224", "std": "0,1,1", "mean": "a,b,c", "activation": "relu", "crop": "1"}
    for key, text in (*wrong.items(), ("size", "inf,inf"), ("threshold", "nan"), ("mean", "nan,0,0")):
        with pytest.raises(ConfigError, match=key):
            make_preprocessing({key: text})
