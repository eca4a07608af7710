"""Specs: the kinds that come with safeflux, mistakes, and a kind that an installed package brings."""

import sys

import pytest

from safeflux.detectors.base import Wanted
from safeflux.detectors.specs import KINDS, open_detector
from safeflux.errors import ConfigError
from safeflux.reference.vocabulary import vocabulary

PACKAGE = """
from safeflux import Detector
import numpy as np

class Redness(Detector):
    def __init__(self, name, concepts):
        self.name, self.concepts, self.thresholds = name, concepts, np.full(len(concepts), 0.5, dtype=np.float32)

    def __call__(self, images):
        reds = [np.asarray(image.convert("RGB"), dtype=np.float32)[..., 0].mean() / 255 for image in images]
        return np.repeat(np.array(reds, dtype=np.float32)[:, None], len(self.concepts), axis=1)

def open_redness(argument, wanted):
    return Redness(f"redness:{argument}", tuple(wanted.concepts))
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package beside safeflux with two entry points; one of them leads nowhere."""
    (tmp_path / "redness.py").write_text(PACKAGE)
    info = tmp_path / "redness-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: redness\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[safeflux.detectors]\nredness = redness:open_redness\nbroken = redness:nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("redness", None)


def test_a_package_brings_a_kind_of_its_own(installed):
    detector = open_detector("redness:x", Wanted({"tomato": ("a tomato",)}))
    assert (detector.name, detector.concepts) == ("redness:x", ("tomato",))
    assert detector.describe() == {"detector": "redness:x", "threshold": 0.5, "is_calibrated": False}
    with pytest.raises(ConfigError, match="redness:nothing cannot be imported"):
        open_detector("broken")
    with pytest.raises(ConfigError, match="expected a threshold for each of its concepts, got 0 for 0"):
        open_detector("redness:x")
    with pytest.raises(ConfigError, match="did you mean 'redness'"):
        open_detector("rednes:x")


def test_the_judge_is_known_by_its_name():
    assert open_detector("judge").concepts == vocabulary().names
    assert open_detector("judge", Wanted({"fluent": ("fluent",)})).concepts == (*vocabulary().names, "fluent")
    assert set(KINDS) == {"judge", "onnx", "zero-shot", "classifier", "opennsfw"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nsfw.onnx", "did you mean 'onnx:nsfw.onnx'?"),
        ("zeroshot:x", "did you mean 'zero-shot'?"),
        ("oracle", "expected judge, onnx:FILE"),
        ("judge:x", "brings its own labels"),
        ("onnx:", "expected the path of an ONNX file"),
        ("onnx:none.onnx", "put it beside the file as none.txt"),
        ("opennsfw:none.onnx", "expected an ONNX file of open_nsfw"),
    ],
)
def test_each_mistake_has_one_clear_error(spec, message):
    with pytest.raises(ConfigError) as caught:
        open_detector(spec)
    assert message in str(caught.value)
