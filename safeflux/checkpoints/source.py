"""A model in files of any format: the interface for planning, baking and verifying."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from safeflux.checkpoints.checkpoint import Checkpoint
from safeflux.checkpoints.formats import open_file
from safeflux.checkpoints.tensor_file import Rows, Stored, WeightFile
from safeflux.families import Layout
from safeflux.families.sites import Sites
from safeflux.masks.spots import Spot


class Source(Protocol):
    """One transformer in files. Tensors are named as in the source's layout."""

    @property
    def path(self) -> Path:
        """The path as given: a folder or a file."""

    @property
    def root(self) -> Path:
        """The folder of all its files, or its only file."""

    @property
    def files(self) -> Sequence[WeightFile]:
        """The files whose tensors are edited as a stream."""

    @property
    def layout(self) -> Layout:
        """The naming that the tensors follow."""

    @property
    def is_resizable(self) -> bool:
        """Whether its tensors can lose rows and columns; False if a graph fixes their shapes."""

    @property
    def sites(self) -> Sites:
        """The maskable places.

        Raises:
            ModelError: This is not a FLUX model.
        """

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the weights, the same in every format.

        Raises:
            ModelError: A tensor is packed, holds values that are not finite, or does not belong to the family.
        """

    def metadata(self, key: str) -> str | None:
        """The value of a metadata key; None if its files do not have it.

        Raises:
            ModelError: Its files have different values.
        """

    def stored(self, name: str) -> Stored:
        """How a tensor is stored in its file, under its name there."""

    def lying(self, name: str, where: Sequence[Spot]) -> Sequence[Spot]:
        """Turn places in a tensor of diffusers into places in the stored tensor."""

    def rows(self, name: str) -> Rows:
        """Yield a tensor some rows at a time, with rows and columns as in diffusers."""

    @property
    def inline(self) -> Mapping[str, bytes]:
        """The bytes of tensors inside a file that is rewritten as a whole, by their names there."""

    def headers(self, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> list[bytes]:
        """Return the header of each of `files` with more metadata, and other shapes for some stored tensors."""

    def rewritten(self, inline: Mapping[str, bytes], metadata: Mapping[str, str]) -> dict[Path, bytes]:
        """Files that are rewritten as a whole, by relative path, with these inline tensors and more metadata."""


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a model: a diffusers folder, or one file of any known format (`formats.OPENERS`).

    Raises:
        ModelError: It holds no FLUX transformer, or a file is missing, damaged or of an unknown format.
        ConfigError: The package that reads the format is not installed.
    """
    root = Path(path)
    if root.is_dir():
        return Checkpoint.open(root)
    opened = open_file(root)
    return Checkpoint.of(root, (opened,)) if isinstance(opened, WeightFile) else opened
