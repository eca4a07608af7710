"""What is to be written for a guarded copy of an ONNX model: everything resolved and checked, nothing written.

Initializers that have diffusers' names are masked. Those in data files are never in memory: such a file is edited as a
stream, as any file of tensors is. Those that lie in the model file are masked in the model.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np

from safeflux.bakejob import Asked, Job
from safeflux.errors import BakeError, ModelError
from safeflux.fingerprint import fingerprint_of
from safeflux.onnxfile import check_unguarded, data_files, extent, is_external, model_bytes, read_model, stamp
from safeflux.onnxweights import Tensor, Weights
from safeflux.patch import Patch, spots
from safeflux.removal import Kept
from safeflux.stream import Change
from safeflux.tensorfile import Stored, WeightFile


@dataclass(frozen=True)
class DataFile(WeightFile):
    """The data file of an ONNX model: numbers alone, which the model knows the names and places of."""

    suffix: ClassVar[str] = ".data"

    def header_with(self, metadata: Mapping[str, str]) -> bytes:
        """Return none: what there is to say stands in the model."""
        return b""


def make_onnx_job(source: str | os.PathLike[str], asked: Asked) -> Job:
    """Resolve and check everything but the target: what `bakejob.make_job` does, for an ONNX model.

    Args:
        source: The model file. Its initializers are all parameters of the transformer by their names in diffusers,
            which may all follow one prefix; matrices lie as in diffusers (a row is an output) or transposed. Their
            data may be in the file itself or in files beside it.
        asked: What the copy is to be.

    Raises:
        BakeError: It was to be compacted.
        ModelError: The source cannot be read or is guarded already, or its weights cannot be found by name.
        SafeFluxError: Whatever planning refuses (`guard` has the list).
    """
    path = Path(source)
    if asked.compact:
        raise BakeError(
            f"{path}: expected a folder of diffusers to compact, got an ONNX model, whose graph has its widths in it; "
            "bake it without --compact"
        )
    model = read_model(path)
    check_unguarded(model, path)
    data = data_files(model, path)
    weights = Weights.of(model, path)
    files = _data_files(data.values(), weights)
    plan = asked.plan(weights.sites(path), fingerprint_of(weights))
    touched = spots(plan.sites, plan.masks, "diffusers", asked.form)
    masked = [(weights.tensors[name], where) for name, where in touched.items()]
    changes = {one.proto.name: Change(one.lying(where), Kept(None, None)) for one, where in masked}
    changed = sum(_mask_inside_(one, changes[one.proto.name]) for one, _ in masked if not is_external(one.proto))
    stamp(model, [plan], asked.form)
    return Job(
        source=path,
        root=path.parent,
        files=files,
        plan=plan,
        changes=changes,
        headers=[file.header_with({}) for file in files],
        copied=(),
        rewritten={Path(path.name): model_bytes(model)},
        num_bytes_changed=changed,
        left_out=(),
    )


def _data_files(paths: Iterable[Path], weights: Weights) -> list[DataFile]:
    """The data files of a model, each once, with the weights that lie in it."""
    found: dict[Path, list[Stored]] = {path: [] for path in sorted(paths)}
    for one in weights.tensors.values():
        if is_external(one.proto):
            found[one.folder / extent(one.proto)[0]].append(one.stored)
    return [_data_file(path, sorted(inside, key=lambda one: one.start)) for path, inside in found.items()]


def _data_file(path: Path, inside: Sequence[Stored]) -> DataFile:
    for one, after in pairwise(inside):
        if one.start + one.nbytes > after.start:
            raise ModelError(
                f"{path}: initializers {one.name!r} and {after.name!r} share bytes, so that what is masked in one "
                "would be off in the other; export the model with data of its own for each"
            )
    return DataFile(path, {one.name: one for one in inside}, {}, 0, path.stat().st_size)


def _mask_inside_(tensor: Tensor, change: Change) -> int:
    """Mask an initializer that lies in the model; return how many of its bytes changed."""
    stored, before = tensor.stored, np.frombuffer(tensor.proto.raw_data, dtype=np.uint8)
    after = before.copy()
    cells = after.view(f"<u{stored.format.cell}").reshape(stored.num_rows, -1)
    Patch.of(change.spots, stored.num_columns, stored.format).fill_(cells, 0)
    tensor.proto.raw_data = after.tobytes()
    return int(np.count_nonzero(before != after))
