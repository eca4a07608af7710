"""Which class opens a file, by its suffix: the one table that a new file format is added to."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeflux.checkpoints.hints import missing, unknown_file
from safeflux.errors import ModelError

if TYPE_CHECKING:
    from safeflux.checkpoints.onnx_source import OnnxSource
    from safeflux.checkpoints.tensor_file import WeightFile

OPENERS = {
    ".safetensors": "safeflux.checkpoints.tensor_file:TensorFile",
    ".sft": "safeflux.checkpoints.tensor_file:TensorFile",
    ".gguf": "safeflux.checkpoints.gguf_file:GgufFile",
    ".onnx": "safeflux.checkpoints.onnx_source:OnnxSource",
}
"""Suffix, in lower case, to the class whose `open` reads such a file. Imported only when one is opened: the packages
that read GGUF and ONNX are extras."""


def open_file(path: Path) -> "WeightFile | OnnxSource":
    """Open a model that is one file, by its suffix in any case.

    Raises:
        ModelError: There is no such file, no format has this suffix, or the file is damaged.
        ConfigError: The package that reads the format is not installed.
    """
    if not path.exists():
        raise missing(path) from FileNotFoundError(path)
    if not path.is_file():
        raise ModelError(f"{path}: expected a folder or a file, got a pipe, a device or a socket; name the file itself")
    opener = OPENERS.get(path.suffix.lower())
    if opener is None:
        raise unknown_file(path, ", ".join(OPENERS))
    module, _, name = opener.partition(":")
    reader: Any = getattr(import_module(module), name)
    opened: WeightFile | OnnxSource = reader.open(path)
    return opened
