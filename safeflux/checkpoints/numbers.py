"""The numbers of every parameter in a model's files, as diffusers names it: some rows at a time, none left out.

No torch. Files of any layout are read; packed ones are not, since packing rounds.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from safeflux.cached import cached_property
from safeflux.checkpoints.checkpoint import Checkpoint
from safeflux.checkpoints.layout import Piece, is_scale, parameters
from safeflux.checkpoints.tensor_file import Stored
from safeflux.disk.copying import read_into
from safeflux.errors import BakeError, ModelError

_COUNT = 1 << 20
"""Numbers that are held at a time."""


@dataclass(frozen=True)
class Numbers:
    """What files hold, parameter by parameter."""

    checkpoint: Checkpoint

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Numbers":
        """Read and check all headers.

        Args:
            path: A diffusers folder, or one safetensors or GGUF file in any known layout.

        Raises:
            ModelError: It holds no FLUX transformer, a file is missing or damaged, or weights are packed or scaled.
        """
        found = cls(Checkpoint.open(path))
        for held in found.checkpoint.tensors.values():
            if held.tensor.format.block > 1:
                raise found._packed(held.tensor)
        for file in found.checkpoint.files:
            if scaled := next((tensor for name, tensor in file.tensors.items() if is_scale(name)), None):
                raise found._packed(scaled)
        return found

    @cached_property
    def pieces(self) -> dict[str, Piece]:
        """Each parameter by its name in diffusers, and where it is.

        Raises:
            ModelError: A tensor belongs to no parameter that is known.
        """
        files = self.checkpoint
        return parameters(files.shapes, files.layout, files.sites.family)

    def rows(self, name: str) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
        """Yield the index of a row of a parameter, and the numbers in it and some of the next rows; (rows, columns).

        Raises:
            ModelError: The file is shorter than its header says.
        """
        piece = self.pieces[name]
        held = self.checkpoint.tensors[piece.tensor]
        num_rows, columns = (piece.shape[0] if piece.shape else 1), held.tensor.num_columns
        step = max(1, min(num_rows, _COUNT // max(1, columns)))
        with held.file.path.open("rb", buffering=0) as file:
            for first, stop in _runs(piece, num_rows, step):
                there = int(piece.places(np.array([first * columns]))[0]) // columns
                buffer = np.empty((stop - first) * held.tensor.bytes_per_row, np.uint8)
                file.seek(held.tensor.start + there * held.tensor.bytes_per_row)
                try:
                    read_into(file, buffer.data)
                except BakeError as error:
                    raise ModelError(str(error)) from error
                yield first, held.tensor.format.decode(buffer.data).reshape(stop - first, columns)

    def _packed(self, tensor: Stored) -> ModelError:
        return ModelError(
            f"{self.checkpoint.path}: tensor {tensor.name!r} is {tensor.dtype}, packed or scaled, which rounds; name "
            "the files that the model was loaded from, before any quantiser"
        )


def _runs(piece: Piece, num_rows: int, step: int) -> Iterator[tuple[int, int]]:
    """Rows that lie one after the other in the file, so many at most."""
    ends = (num_rows // 2, num_rows) if piece.is_swapped else (num_rows,)
    first = 0
    for end in ends:
        while first < end:
            stop = min(end, first + step)
            yield first, stop
            first = stop
