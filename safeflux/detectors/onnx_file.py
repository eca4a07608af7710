"""Any classifier that is an ONNX file, with the user's labels and preprocessing."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from safeflux.detectors.base import Detector, Scores, Wanted, activate, same_threshold
from safeflux.detectors.preprocessing import Preprocessing, make_preprocessing
from safeflux.errors import ConfigError
from safeflux.reference.onnx_session import open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_BATCH = 32


class OnnxDetector(Detector):
    """A classifier in an ONNX file with one image input of rank 4; its first output, (B, labels), is read.

    Whether colours come before or after the places (NCHW or NHWC), and the size, are read from the input's shape.

    Args:
        path: The ONNX file.
        labels: A text file with one label a line, in the order of the outputs.
        preprocessing: How pictures are made ready.

    Raises:
        ConfigError: A file is missing or cannot be read, the input is no batch of RGB pictures, its size is free and
            not given, or there are not as many labels as outputs.
    """

    def __init__(self, path: str | Path, labels: str | Path, preprocessing: Preprocessing | None = None) -> None:
        self.name, self._path, self._how = f"onnx:{path}", Path(path), preprocessing or Preprocessing()
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
        self.concepts = _read_labels(Path(labels))
        self.thresholds = same_threshold(self.concepts, self._how.threshold)
        self._check_width(self._session.get_outputs()[0].shape)

    def __call__(self, images: Sequence[Image.Image]) -> Scores:
        """Score B pictures of any size: float32 (B, labels)."""
        output = self._session.get_outputs()[0].name
        parts = [np.zeros((0, len(self.concepts)), dtype=np.float32)]
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            pixels = np.stack([self._pixels(image) for image in part])
            missing = self._batch - len(part) if self._batch != _BATCH else 0  # a fixed batch is filled up
            (values,) = self._session.run([output], {self._input: np.pad(pixels, [(0, missing), *[(0, 0)] * 3])})
            self._check_width(list(values.shape))
            parts.append(activate(values[: len(part)], self._how.activation))
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
        if isinstance(width, int) and width == len(self.concepts):
            return
        if len(shape) != 2 or isinstance(width, int):
            raise ConfigError(f"{self._path}: expected an output of {len(self.concepts)} labels, got {width}")


def open_onnx(argument: str, wanted: Wanted) -> OnnxDetector:
    """`onnx:FILE`.

    Raises:
        ConfigError: No file is named, its labels are nowhere, or it cannot be opened.
    """
    if not argument:
        raise ConfigError("detector 'onnx': expected the path of an ONNX file behind it, e.g. onnx:nsfw.onnx")
    labels = wanted.labels or Path(argument).with_suffix(".txt")
    if wanted.labels is None and not labels.is_file():
        raise ConfigError(
            f"{argument}: its labels are not known; give a text file with one label a line by --labels, or put it "
            f"beside the file as {labels.name}"
        )
    return OnnxDetector(argument, labels, make_preprocessing(wanted.settings))


def _open(path: Path) -> "InferenceSession":
    if not path.is_file():
        raise ConfigError(f"{path}: does not exist; expected an ONNX classifier")
    try:
        return open_session(path)
    except ConfigError:  # no ONNX Runtime here
        raise
    except Exception as error:  # the classes that onnxruntime raises have no common public base
        raise ConfigError(f"{path}: cannot be read as an ONNX model ({error})") from error


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read; expected a text file with one label a line ({error})") from error
    for line, label in enumerate(labels, 1):
        if not label or label in labels[: line - 1]:
            raise ConfigError(f"{path}:{line}: expected a label that is neither empty nor a repetition, got {label!r}")
    return labels
