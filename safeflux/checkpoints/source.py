"""A model in files, whatever their format: what planning, baking and verifying ask of it."""

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
    """One transformer in files. Tensors go by their names in the source's layout."""

    @property
    def path(self) -> Path:
        """What was named: a folder or a file."""

    @property
    def root(self) -> Path:
        """The folder that all of its files lie in, or the one file that it is."""

    @property
    def files(self) -> Sequence[WeightFile]:
        """The files whose tensors are edited as a stream."""

    @property
    def layout(self) -> Layout:
        """The naming that the tensors follow."""

    @property
    def is_resizable(self) -> bool:
        """Whether its tensors can lose rows and columns; not where a graph fixes their shapes."""

    @property
    def sites(self) -> Sites:
        """The maskable places.

        Raises:
            ModelError: This is no FLUX model.
        """

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the weights, the same in every format.

        Raises:
            ModelError: A tensor is packed, or holds values that are not finite, or is none that the family has.
        """

    def metadata(self, key: str) -> str | None:
        """The text that its files hold under a key of their metadata; None for none.

        Raises:
            ModelError: Its files do not all say the same.
        """

    def stored(self, name: str) -> Stored:
        """How a tensor lies in its file, under its name there."""

    def lying(self, name: str, where: Sequence[Spot]) -> Sequence[Spot]:
        """Places in a tensor as diffusers has it, turned into places in the tensor that lies in the file."""

    def rows(self, name: str) -> Rows:
        """Yield a tensor some rows at a time, rows and columns as diffusers has them."""

    @property
    def inline(self) -> Mapping[str, bytes]:
        """Tensors inside a file that is written whole, by their names there: their bytes."""

    def headers(self, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> list[bytes]:
        """Lay out the header of each of `files` with more metadata, and other shapes for some stored tensors."""

    def rewritten(self, inline: Mapping[str, bytes], metadata: Mapping[str, str]) -> dict[Path, bytes]:
        """Files that are written whole, by their paths under the root, with these inline tensors and more metadata."""


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a model: a diffusers folder, or one file of any format that is known (`formats.OPENERS`).

    Raises:
        ModelError: There is no FLUX transformer, or a file is missing, damaged or of no known format.
        ConfigError: The package that reads the format is not installed.
    """
    root = Path(path)
    if root.is_dir():
        return Checkpoint.open(root)
    opened = open_file(root)
    return Checkpoint.of(root, (opened,)) if isinstance(opened, WeightFile) else opened
