"""The weights of an ONNX model: the initializers that are a transformer's parameters, and how they are stored."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from safeflux.checkpoints.number_formats import FORMATS, Cells, Format
from safeflux.checkpoints.onnx_model import extent, is_external, type_of
from safeflux.checkpoints.tensor_file import Rows, Stored
from safeflux.disk.copying import CHUNK
from safeflux.errors import ModelError
from safeflux.families import FAMILIES
from safeflux.families.sites import Sites, find_sites
from safeflux.masks.packed import PackedMask
from safeflux.masks.spots import Spot

_FLOATS = {
    "DOUBLE": FORMATS["F64"],
    "FLOAT": FORMATS["F32"],
    "FLOAT16": FORMATS["F16"],
    "BFLOAT16": FORMATS["BF16"],
}
"""ONNX types that can be masked."""
_ROUTE = "The route that works: load the model with diffusers, guard it, then safeflux.export_onnx."


@dataclass(frozen=True)
class Tensor:
    """One initializer, and whether it is transposed: a matrix whose rows are inputs, unlike in diffusers."""

    proto: Any
    folder: Path
    is_transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in diffusers."""
        return tuple(self.proto.dims)[:: -1 if self.is_transposed else 1]

    @property
    def format(self) -> Format:
        """Its number format."""
        return _FLOATS[type_of(self.proto)]

    @property
    def stored(self) -> Stored:
        """Where it is stored: in its data file, or in the model's own bytes."""
        start, size = extent(self.proto)[1:] if is_external(self.proto) else (0, len(self.proto.raw_data))
        return Stored(self.proto.name, type_of(self.proto), tuple(self.proto.dims), start, size, self.format)

    def lying(self, where: Sequence[Spot]) -> list[Spot]:
        """Turn places in diffusers' matrix into places in the stored one."""
        return [_turned(spot) for spot in where] if self.is_transposed else list(where)

    def take(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return elements by their row-major indices in diffusers' matrix."""
        rows, columns = np.divmod(places, self.shape[-1] if len(self.shape) == 2 else 1)
        return self.format.decode(self._cells()[rows, columns].tobytes())

    def rows(self) -> Rows:
        """Yield a row's index, and a copy of it and some of the next rows, as unsigned integers."""
        cells = self._cells()
        step = max(1, CHUNK // cells[0].nbytes)
        for first in range(0, len(cells), step):
            yield first, np.array(cells[first : first + step], order="C")

    def _cells(self) -> Cells:
        """Its numbers as unsigned integers, rows and columns as in diffusers; a vector has one column."""
        cells = self._data().view(f"<u{self.format.cell}")
        return cells.reshape(self.proto.dims).T if self.is_transposed else cells.reshape(self.shape[0], -1)

    def _data(self) -> npt.NDArray[np.uint8]:
        if not is_external(self.proto):
            return np.frombuffer(self.proto.raw_data, dtype=np.uint8)
        location, offset, length = extent(self.proto)
        return np.memmap(self.folder / location, np.uint8, "r", offset, (length,))


def _turned(spot: Spot) -> Spot:
    """A place in a matrix, in its transpose; a mask of single weights covers the whole matrix in diffusers."""
    if len(spot.bits.shape) == 2:
        return replace(spot, bits=PackedMask.of(spot.bits.keep().T))
    return replace(spot, span=replace(spot.span, axis=1 - spot.span.axis))


@dataclass(frozen=True)
class Weights:
    """All parameters of a transformer in an ONNX model, by their names in diffusers; see `fingerprint.Weights`."""

    tensors: Mapping[str, Tensor]
    coarsest: str = ""

    @classmethod
    def of(cls, model: Any, path: Path) -> "Weights":
        """Find them in a model.

        Raises:
            ModelError: One is quantised, folded or damaged.
        """
        uses: dict[str, list[tuple[Any, int]]] = defaultdict(list)
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                uses[name].append((node, index))
        protos = {proto.name: proto for proto in model.graph.initializer}
        ends = tuple(family.dim["diffusers"] for family in FAMILIES)
        prefix = next((name.removesuffix(end) for name in protos for end in ends if name.endswith(end)), "")
        return cls(
            {
                name.removeprefix(prefix): _tensor(proto, path, uses[name])
                for name, proto in protos.items()
                if name.startswith(prefix) and name.endswith((".weight", ".bias"))
            }
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `fingerprint.Weights`."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def take(self, name: str, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """See `fingerprint.Weights`."""
        return self.tensors[name].take(places)

    def sites(self, path: Path) -> Sites:
        """All sites, or an error with another way to export the model.

        Raises:
            ModelError: They are not those of a FLUX transformer by their names in diffusers.
        """
        try:
            return find_sites(self.shapes)
        except ModelError as error:
            raise ModelError(
                f"{path}: its initializers are not the parameters of a FLUX transformer by their names in diffusers "
                f"({error}); another exporter may have renamed, merged or folded them. {_ROUTE}"
            ) from error


def _tensor(proto: Any, path: Path, uses: Sequence[tuple[Any, int]]) -> Tensor:
    where = f"{path}: initializer {proto.name!r}"
    if type_of(proto) not in _FLOATS:
        raise ModelError(f"{where}: expected a plain float type, got {type_of(proto)}: quantised? {_ROUTE}")
    if len(proto.dims) not in (1, 2) or 0 in proto.dims:
        raise ModelError(f"{where}: expected a vector or a matrix, got shape {list(proto.dims)}. {_ROUTE}")
    expected = math.prod(proto.dims) * _FLOATS[type_of(proto)].nbytes
    got = extent(proto)[2] if is_external(proto) else len(proto.raw_data)
    if got != expected:
        raise ModelError(f"{where}: expected {expected} bytes of raw data for shape {list(proto.dims)}, got {got}")
    turns = {_is_transposed(node, index) if len(proto.dims) == 2 else False for node, index in uses}
    turn = turns.pop() if len(turns) == 1 else None
    if turn is None:
        readers = ", ".join(sorted({node.op_type for node, _ in uses})) or "nothing"
        raise ModelError(f"{where}: expected a linear layer to read it, found {readers}: folded or fused? {_ROUTE}")
    return Tensor(proto, path.parent, turn)


def _is_transposed(node: Any, index: int) -> bool | None:
    """Whether a node that reads a matrix treats its rows as inputs; None if that is not known."""
    if node.op_type == "Transpose":
        return False
    if node.op_type in ("MatMul", "Gemm") and index == 1:
        return not any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return None
