"""An ONNX model as a source of weights: the model file and its data files.

Initializers with diffusers' names are parameters. Data files are edited as a stream, like any file of tensors, and
never loaded. Initializers inside the model file are edited in memory.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from safeflux.cached import cached_property
from safeflux.checkpoints.onnx_model import data_files, extent, is_external, model_bytes, read_model
from safeflux.checkpoints.onnx_weights import Weights
from safeflux.checkpoints.tensor_file import Rows, Stored, WeightFile
from safeflux.errors import ModelError
from safeflux.families import Layout
from safeflux.families.fingerprint import fingerprint_of
from safeflux.families.sites import Sites
from safeflux.masks.spots import Spot


@dataclass(frozen=True)
class DataFile(WeightFile):
    """The data file of an ONNX model: raw numbers, whose names and offsets are in the model file."""

    def header_with(self, metadata: Mapping[str, str]) -> bytes:
        """Return nothing: the metadata are in the model file."""
        return b""


@dataclass(frozen=True)
class OnnxSource:
    """A transformer in an ONNX model; see `source.Source`."""

    path: Path
    model: Any
    """The `onnx.ModelProto`, which nothing here changes."""
    weights: Weights
    files: tuple[DataFile, ...]
    layout: ClassVar[Layout] = "diffusers"
    is_resizable: ClassVar[bool] = False

    @classmethod
    def open(cls, path: Path) -> "OnnxSource":
        """Read the model file, and check it and the sizes of its data files.

        Raises:
            ModelError: The model cannot be read, its weights cannot be found by name, or a data file is missing,
                truncated or shared by tensors.
        """
        model = read_model(path)
        data = data_files(model, path)
        weights = Weights.of(model, path)
        return cls(path, model, weights, tuple(_data_files(data.values(), weights)))

    @property
    def root(self) -> Path:
        """See `Source`."""
        return self.path.parent

    @cached_property
    def sites(self) -> Sites:
        """See `Source`."""
        return self.weights.sites(self.path)

    @cached_property
    def fingerprint(self) -> str:
        """See `Source`."""
        return fingerprint_of(self.weights)

    def metadata(self, key: str) -> str | None:
        """See `Source`."""
        return next((entry.value for entry in self.model.metadata_props if entry.key == key), None)

    def stored(self, name: str) -> Stored:
        """See `Source`."""
        return self.weights.tensors[name].stored

    def lying(self, name: str, where: Sequence[Spot]) -> Sequence[Spot]:
        """See `Source`."""
        return self.weights.tensors[name].lying(where)

    def rows(self, name: str) -> Rows:
        """See `Source`."""
        return self.weights.tensors[name].rows()

    @property
    def inline(self) -> dict[str, bytes]:
        """See `Source`."""
        protos = (tensor.proto for tensor in self.weights.tensors.values())
        return {proto.name: proto.raw_data for proto in protos if not is_external(proto)}

    def headers(self, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> list[bytes]:
        """See `Source`."""
        return [file.header_with(metadata) for file in self.files]

    def rewritten(self, inline: Mapping[str, bytes], metadata: Mapping[str, str]) -> dict[Path, bytes]:
        """See `Source`."""
        model = copy.deepcopy(self.model)
        for proto in model.graph.initializer:
            if proto.name in inline:
                proto.raw_data = inline[proto.name]
        for key, value in metadata.items():
            model.metadata_props.add(key=key, value=value)
        return {Path(self.path.name): model_bytes(model)}


def _data_files(paths: Iterable[Path], weights: Weights) -> list[DataFile]:
    """The data files of a model, each once, with its weights."""
    found: dict[Path, list[Stored]] = {path: [] for path in sorted(paths)}
    for one in weights.tensors.values():
        if is_external(one.proto):
            found[one.folder / extent(one.proto)[0]].append(one.stored)
    return [_data_file(path, sorted(inside, key=lambda one: one.start)) for path, inside in found.items()]


def _data_file(path: Path, inside: Sequence[Stored]) -> DataFile:
    for one, after in pairwise(inside):
        if one.start + one.nbytes > after.start:
            raise ModelError(
                f"{path}: initializers {one.name!r} and {after.name!r} share bytes, so a mask of one would also change "
                "the other; export the model without shared data"
            )
    return DataFile(path, {one.name: one for one in inside}, {}, 0, path.stat().st_size)
