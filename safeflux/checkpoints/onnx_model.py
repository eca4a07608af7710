"""ONNX models on disk: the model file, and the data files next to it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safeflux.checkpoints.hints import is_lfs_pointer, lfs_pointer
from safeflux.errors import ConfigError, ModelError

MISSING = "ONNX models need onnx, and onnxscript to export them; get both with: pip install 'safeflux[onnx]'"
_MAX_BYTES = 1 << 31
"""The limit of protobuf."""
try:
    import onnx
except ImportError as error:
    raise ConfigError(MISSING) from error


def read_model(path: Path) -> Any:
    """Read a model file (`onnx.ModelProto`), without its data files.

    Raises:
        ModelError: It does not exist, or is not an ONNX model.
    """
    if is_lfs_pointer(path):
        raise lfs_pointer(path)
    if path.stat().st_size >= _MAX_BYTES:
        raise ModelError(
            f"{path}: expected less than 2 GB, the limit of ONNX; export it with its weights in data files"
        )
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf raises its own classes
        raise ModelError(f"{path}: cannot be read as an ONNX model ({error})") from error
    if not model.graph.node:
        raise ModelError(f"{path}: expected an ONNX model, got a file without a graph")
    return model


def model_bytes(model: Any) -> bytes:
    """Return the bytes of a model file, without its data files; the same model gives the same bytes."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def data_files(model: Any, path: Path) -> dict[str, Path]:
    """Return every data file of a model, by its name in the model, after a check of their sizes.

    Raises:
        ModelError: One is missing or truncated, or is not next to the model.
    """
    found: dict[str, Path] = {}
    for tensor in _tensors(model.graph):
        if not is_external(tensor):
            continue
        location, offset, length = extent(tensor)
        if Path(location).is_absolute() or ".." in Path(location).parts or Path(location) == Path(path.name):
            raise ModelError(f"{path}: expected data files next to it, got {location!r} for {tensor.name!r}")
        file = found.setdefault(location, path.parent / location)
        if not file.is_file():
            raise ModelError(
                f"{file}: does not exist, but {path.name} keeps {tensor.name!r} in it; copy the model again"
            )
        if (size := file.stat().st_size) < offset + length:
            raise ModelError(
                f"{file}: truncated, expected at least {offset + length} bytes for {tensor.name!r}, got {size}; copy "
                "the file again"
            )
    return found


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of a graph, and of graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def extent(tensor: Any) -> tuple[str, int, int]:
    """Return data file, offset and number of bytes of a tensor outside the model file.

    Raises:
        ModelError: The model does not give them.
    """
    facts = {entry.key: entry.value for entry in tensor.external_data}
    try:
        location, offset, length = facts["location"], int(facts.get("offset", 0)), int(facts["length"])
    except (KeyError, ValueError) as error:
        raise ModelError(f"initializer {tensor.name!r}: expected location, offset and length, got {facts}") from error
    if min(offset, length) < 0 or not location:
        raise ModelError(f"initializer {tensor.name!r}: expected location, offset and length, got {facts}")
    return location, offset, length


def type_of(tensor: Any) -> str:
    """ONNX's name for a tensor's type, such as FLOAT16."""
    return str(onnx.TensorProto.DataType.Name(tensor.data_type))


def is_external(tensor: Any) -> bool:
    """Whether a tensor's data is outside the model file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)
