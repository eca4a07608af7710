"""The table from file suffix to reader; a new file format is added here."""

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
"""Suffix, in lower case, to the class whose `open` reads such a file. Imported only when a file is opened, since the
packages that read GGUF and ONNX are extras."""


def open_file(path: Path) -> "WeightFile | OnnxSource":
    """Open a model in one file, by its suffix in any case.

    Raises:
        ModelError: The file does not exist, its suffix belongs to no known format, or it is damaged.
        ConfigError: The package that reads the format is not installed.
    """
    if not path.exists():
        raise missing(path) from FileNotFoundError(path)
    if not path.is_file():
        raise ModelError(f"{path}: expected a folder or a file, got a pipe, a device or a socket; pass a regular file")
    opener = OPENERS.get(path.suffix.lower())
    if opener is None:
        raise unknown_file(path, ", ".join(OPENERS))
    module, _, name = opener.partition(":")
    reader: Any = getattr(import_module(module), name)
    opened: WeightFile | OnnxSource = reader.open(path)
    return opened
