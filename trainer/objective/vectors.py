"""Vectors with a number for every bit: gigabytes each where the single weights of a real model are masked.

Those that are large lie in files without a name in the run's folder, mapped into memory. The system keeps as much of
them in memory as is free and writes the rest to disk; whatever ends the process, nothing of them is left. Arithmetic
goes through them piece by piece, so that no intermediate result is as large as they are.
"""

import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

import torch

PIECE = 1 << 20
"""Numbers that are worked on at a time."""
SMALL = 1 << 26
"""Bytes of a vector that is faster to make in memory."""
_WRITTEN = 1 << 24


class Vectors:
    """Makes vectors in files of a folder."""

    def __init__(self, folder: Path | None, small: int = SMALL) -> None:
        """Make nothing yet.

        Args:
            folder: Made when it is needed; None for plain tensors in memory.
            small: Bytes of a vector up to which it stays in memory.
        """
        self._folder, self._small = folder, small

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Zeros, in a file of their own unless they are small. The file goes when the tensor does.

        Its bytes on the disk are reserved at once.

        Raises:
            OSError: The disk is full, or the folder cannot be written to.
        """
        size = math.prod(shape) * dtype.itemsize
        if self._folder is None or size <= self._small:
            return torch.zeros(shape, dtype=dtype)
        self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=self._folder) as file:
            _reserve(file.fileno(), size)
            return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype).view(shape)

    def copy_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor on the CPU, where `zeros` puts it.

        Raises:
            OSError: As `zeros`.
        """
        return self.zeros(*tensor.shape, dtype=tensor.dtype).copy_(tensor)


IN_MEMORY = Vectors(None)
"""For vectors that are small, or needed for a moment."""


def pieces(*vectors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same part of several vectors, (..., bits) each, one part after the other: views of `PIECE` bits."""
    return zip(*(vector.split(PIECE, dim=-1) for vector in vectors), strict=True)


def share_masked(masks: torch.Tensor) -> float:
    """Share of the bits that any row of masks, bool (categories, bits), switches off.

    Examples:
        >>> share_masked(torch.tensor([[True, True, False, True], [True, False, False, True]]))
        0.5
    """
    return 1 - sum(int(part.all(dim=0).sum()) for (part,) in pieces(masks)) / masks.shape[1]


def _reserve(handle: int, size: int) -> None:
    """Take the bytes on the disk: a mapped file without them ends the process where the disk is full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
        return
    zeros = bytes(_WRITTEN)  # macOS
    for start in range(0, size, _WRITTEN):
        os.pwrite(handle, zeros[: size - start], start)
