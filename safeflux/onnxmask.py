"""Masks into an ONNX model: a copy of it in which the initializers that have diffusers' names are masked.

The weights are never all in memory: data files are copied, and masked matrices are written in the copy, some rows at a
time.
"""

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from safeflux.copying import CHUNK
from safeflux.errors import ModelError
from safeflux.families import FAMILIES
from safeflux.fingerprint import fingerprint_of
from safeflux.floats import FORMATS, Format
from safeflux.lock import check_lock
from safeflux.onnxfile import (
    check_target,
    check_unguarded,
    data_files,
    extent,
    is_external,
    read_model,
    stamp,
    type_of,
    write_model,
)
from safeflux.patch import Cells, Patch, Spot, spots
from safeflux.plan import Plan, plan_for
from safeflux.policy import Policy, load_policy
from safeflux.sites import Site, find_sites
from safeflux.staging import staged
from safeflux.store import Store, StoreLike, open_store

_FLOATS = {
    "DOUBLE": FORMATS["F64"],
    "FLOAT": FORMATS["F32"],
    "FLOAT16": FORMATS["F16"],
    "BFLOAT16": FORMATS["BF16"],
}
"""ONNX's types of weights that can be masked."""
_ROUTE = "The route that works: load the model with diffusers, guard it, then safeflux.onnxexport.export_onnx."


def mask_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    policy: str | os.PathLike[str] | Policy = "strict",
    *,
    store: StoreLike | Store | None = None,
    lock: str | os.PathLike[str] | None = None,
) -> Plan:
    """Write a copy of an ONNX model in which all is off that a policy masks; all else of its weights stays as it is.

    Everything is checked before anything is written. The copy's metadata says which policy is in force.

    Args:
        source: The model file. Its initializers are all parameters of the transformer by their names in diffusers,
            which may all follow one prefix; matrices lie as in diffusers (a row is an output) or transposed. Their
            data may be in the file itself or in files beside it.
        target: The folder to make; the files in it have the names that they have in the source's folder.
        policy: As for `guard`.
        store: As for `guard`.
        lock: As for `guard`.

    Returns:
        What was written, and from which mask sets.

    Raises:
        BakeError: The target is there already, or cannot be written.
        ModelError: The source cannot be read or is guarded already, or its weights cannot be found by name.
        SafeFluxError: Whatever planning refuses (`guard` has the list).
    """
    path, folder = Path(source), Path(target)
    effective = load_policy(policy)
    model = read_model(path)
    check_unguarded(model, path)
    files = data_files(model, path)
    weights = Weights.of(model, path)
    plan = plan_for(effective, weights.sites(path), fingerprint_of(weights), open_store(store))
    plan.check_enforces()
    if lock is not None:
        check_lock(plan, lock)
    check_target(folder)
    with staged(folder, sum(file.stat().st_size for file in (path, *files.values()))) as partial:
        partial.mkdir()
        for location, file in files.items():
            (partial / location).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, partial / location)
        for name, where in spots(plan.sites, plan.masks, "diffusers").items():
            weights.tensors[name].mask_(partial, where)
        stamp(model, [plan])
        write_model(model, partial / path.name)
    return plan


@dataclass(frozen=True)
class Tensor:
    """One initializer, and whether it is a matrix whose rows are inputs, unlike in diffusers."""

    proto: Any
    folder: Path
    is_transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """As diffusers has it."""
        return tuple(self.proto.dims)[:: -1 if self.is_transposed else 1]

    @property
    def format(self) -> Format:
        """How its numbers lie."""
        return _FLOATS[type_of(self.proto)]

    def take(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return elements by their numbers, counted row by row."""
        rows, columns = np.divmod(places, self.shape[-1] if len(self.shape) == 2 else 1)
        return self.format.decode(self._cells(self._data(self.folder, "r"))[rows, columns].tobytes())

    def mask_(self, folder: Path, where: Sequence[Spot]) -> None:
        """Set to zero what is masked: in its data file in a folder, or in the model."""
        data = self._data(folder, "r+")
        cells = self._cells(data)
        patch = Patch.of(where, cells.shape[1])
        for first, rows in _in_steps(cells):
            patch.fill_(rows, first)
            cells[first : first + len(rows)] = rows
        if isinstance(data, np.memmap):
            data.flush()
        else:
            self.proto.raw_data = data.tobytes()

    def rows(self) -> Iterator[tuple[int, Cells]]:
        """Yield the number of a row, and a copy of it and some of the next, as unsigned integers."""
        return _in_steps(self._cells(self._data(self.folder, "r")))

    def _data(self, folder: Path, mode: Literal["r", "r+"]) -> npt.NDArray[np.uint8]:
        """Its bytes: those in the model, copied, or those in a data file as they are."""
        if not is_external(self.proto):
            return np.frombuffer(bytearray(self.proto.raw_data), dtype=np.uint8)
        location, offset, length = extent(self.proto)
        return np.memmap(folder / location, np.uint8, mode, offset, (length,))

    def _cells(self, data: npt.NDArray[np.uint8]) -> Cells:
        """View bytes as unsigned integers, rows and columns as in diffusers; a vector has one column."""
        cells = data.view(f"<u{self.format.cell}")
        return cells.reshape(self.proto.dims).T if self.is_transposed else cells.reshape(self.shape[0], -1)


@dataclass(frozen=True)
class Weights:
    """All parameters of a transformer in an ONNX model by their names in diffusers, as `fingerprint_of` asks for."""

    tensors: Mapping[str, Tensor]
    coarsest: str = ""

    @classmethod
    def of(cls, model: Any, path: Path) -> "Weights":
        """Find them."""
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

    def sites(self, path: Path) -> dict[str, Site]:
        """All of them, or an error that says which way there is."""
        try:
            return find_sites(self.shapes)
        except ModelError as error:
            raise ModelError(
                f"{path}: its initializers are not the parameters of a FLUX transformer by their names in diffusers "
                f"({error}); another exporter may have renamed, merged or folded them. {_ROUTE}"
            ) from error


def _in_steps(cells: Cells) -> Iterator[tuple[int, Cells]]:
    step = max(1, CHUNK // cells[0].nbytes)
    for first in range(0, len(cells), step):
        yield first, np.array(cells[first : first + step], order="C")


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
        raise ModelError(f"{where}: expected that a linear layer reads it, found {readers}: folded or fused? {_ROUTE}")
    return Tensor(proto, path.parent, turn)


def _is_transposed(node: Any, index: int) -> bool | None:
    """Whether a node that reads a matrix takes its rows for inputs; None where that is not known."""
    if node.op_type == "Transpose":
        return False
    if node.op_type in ("MatMul", "Gemm") and index == 1:
        return not any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return None
