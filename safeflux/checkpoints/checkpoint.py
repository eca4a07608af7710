"""A FLUX transformer in files, inspected without loading it: its tensors, sites and fingerprint.

A checkpoint is a diffusers folder (a pipeline or its transformer; one file, or shards with an index), or one
safetensors or GGUF file in the layout of diffusers or of Black Forest Labs. Nothing is written here, and no torch is
imported.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from safeflux.cached import cached_property
from safeflux.checkpoints.formats import OPENERS, open_file
from safeflux.checkpoints.hints import bfl_in_folder, check_not_packed, no_transformer
from safeflux.checkpoints.layout import Piece, layout_of, own_names, parameters
from safeflux.checkpoints.tensor_file import Rows, Stored, TensorFile, WeightFile, resized, rows_of
from safeflux.disk.canonical import MAX_BYTES, parse_mapping
from safeflux.disk.reading import read_regular
from safeflux.errors import ModelError
from safeflux.families import Layout
from safeflux.families.fingerprint import TOLERANCE, fingerprint_of
from safeflux.families.sites import Sites, find_sites
from safeflux.masks.spots import Spot

_NAME = "diffusion_pytorch_model.safetensors"
INDEX = f"{_NAME}.index.json"
"""The file that maps tensors to shards."""


@dataclass(frozen=True)
class Held:
    """A tensor, and the file that holds it."""

    file: WeightFile
    tensor: Stored


@dataclass(frozen=True)
class Checkpoint:
    """The files of one transformer."""

    path: Path
    """The path as given: a folder or a file."""
    files: tuple[WeightFile, ...]
    tensors: Mapping[str, Held]
    """The transformer's own tensors by their names in its layout, without a prefix."""
    layout: Layout
    is_resizable: ClassVar[bool] = True

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Checkpoint":
        """Read and check all headers.

        Raises:
            ModelError: It holds no FLUX transformer, or a file is missing, damaged or disagrees with the index.
            ConfigError: It is a GGUF file, and the package `gguf` is not installed.
        """
        root = Path(path)
        if not root.is_dir():
            return cls.of(root, [_open_weights(root)])
        home = home_of(root)
        found = cls.of(root, _open_folder(root, home))
        if found.layout == "bfl":
            raise bfl_in_folder(home, [file.path for file in found.files])
        return found

    @classmethod
    def of(cls, root: Path, files: Iterable[WeightFile]) -> "Checkpoint":
        """Find the transformer in opened files.

        Args:
            root: The path as given.
            files: All files that hold a part of it.

        Raises:
            ModelError: The files do not hold one.
        """
        files = tuple(files)
        held = {name: Held(file, tensor) for file in files for name, tensor in file.tensors.items()}
        own = {name: held[full] for name, full in own_names(held).items()}
        check_not_packed(root, own)
        return cls(root, files, own, layout_of(own))

    @property
    def root(self) -> Path:
        """See `source.Source`."""
        return self.path

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.num_bytes for file in self.files)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {name: held.tensor.shape for name, held in self.tensors.items()}

    @cached_property
    def sites(self) -> Sites:
        """The maskable places.

        Raises:
            ModelError: This is not a FLUX model.
        """
        try:
            return find_sites(self.shapes, self.layout)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from error

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the weights, the same in every layout.

        Raises:
            ModelError: A tensor is packed, holds values that are not finite, or does not belong to the family.
        """
        with ExitStack() as stack:
            opened = {file.path: stack.enter_context(file.path.open("rb", buffering=0)) for file in self.files}
            try:
                pieces = parameters(self.shapes, self.layout, self.sites.family)
                return fingerprint_of(_InFiles(self, pieces, opened))
            except ModelError as error:
                raise ModelError(f"{self.path}: {error}") from error

    def metadata(self, key: str) -> str | None:
        """See `source.Source`."""
        texts = {file.metadata.get(key) for file in self.files}
        if len(texts) > 1:
            raise ModelError(f"{self.path}: its files were not baked together; bake the model again")
        return texts.pop()

    def stored(self, name: str) -> Stored:
        """See `source.Source`."""
        return self.tensors[name].tensor

    def lying(self, name: str, where: Sequence[Spot]) -> Sequence[Spot]:
        """See `source.Source`: tensors are stored as their layout has them."""
        return where

    def rows(self, name: str) -> Rows:
        """See `source.Source`."""
        held = self.tensors[name]
        with held.file.path.open("rb", buffering=0) as file:
            for first, cells in rows_of(file, held.tensor):
                yield first, held.tensor.format.nonzero(cells)

    @property
    def inline(self) -> dict[str, bytes]:
        """See `source.Source`: none, since every tensor is edited as a stream."""
        return {}

    def headers(self, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> list[bytes]:
        """See `source.Source`."""
        found = []
        for file in self.files:
            cut = {name: shape for name, shape in shapes.items() if name in file.tensors}
            found.append((resized(file, cut) if cut else file).header_with(metadata))
        return found

    def rewritten(self, inline: Mapping[str, bytes], metadata: Mapping[str, str]) -> dict[Path, bytes]:
        """See `source.Source`: none."""
        return {}


@dataclass(frozen=True)
class _InFiles:
    """Parameters in files, as `fingerprint_of` asks for them."""

    checkpoint: Checkpoint
    pieces: Mapping[str, Piece]
    opened: Mapping[Path, BinaryIO]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `fingerprint.Weights`."""
        return {name: piece.shape for name, piece in self.pieces.items()}

    @property
    def coarsest(self) -> str:
        """See `fingerprint.Weights`."""
        formats = (held.tensor.known for held in self.checkpoint.tensors.values())
        return max((known.coarseness for known in formats if known), key=TOLERANCE.__getitem__, default="")

    def take(self, name: str, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """See `fingerprint.Weights`. The scale of a whole tensor does not count, so it is not asked for."""
        piece = self.pieces[name]
        held = self.checkpoint.tensors[piece.tensor]
        file, form = self.opened[held.file.path], held.tensor.format

        def read(blocks: npt.NDArray[np.int64]) -> bytes:
            raw = []
            for block in blocks.tolist():
                file.seek(held.tensor.start + block * form.nbytes)
                raw.append(file.read(form.nbytes))
            return b"".join(raw)

        return form.take(read, piece.places(places))


def check_maskable(tensor: Stored, where: Sequence[Spot]) -> None:
    """Check that the masked elements of a tensor, and only they, can be set to zero.

    Raises:
        ModelError: The tensor is packed, so that single numbers, columns or even rows cannot be.
    """
    if tensor.format.layers:
        return
    for spot in where:
        if spot.span.axis or len(spot.bits.shape) == 2:
            what = "columns" if spot.span.axis else "single weights"
            way_out = "Bake with --form rows, or bake" if spot.span.axis else "Bake"
            raise ModelError(
                f"tensor {tensor.name!r}: site {spot.site!r} masks {what} of it, but in {tensor.dtype} only whole rows "
                f"can be exactly zero. {way_out} the model before it is quantised, then quantise the baked model."
            )


def home_of(root: Path) -> Path:
    """The folder with the transformer's files: `transformer/` of a pipeline, or the folder itself."""
    return root / "transformer" if (root / "transformer").is_dir() else root


def _open_weights(path: Path) -> WeightFile:
    opened = open_file(path)
    if not isinstance(opened, WeightFile):
        raise ModelError(
            f"{path}: expected safetensors or GGUF, got an ONNX model; pass the model that it was exported from"
        )
    return opened


def _open_folder(root: Path, home: Path) -> list[TensorFile]:
    """Open the files of a transformer; if there is an index, each must hold exactly the tensors that it lists."""
    index = home / INDEX
    if not index.is_file():
        if (home / _NAME).is_file():
            return [TensorFile.open(home / _NAME)]
        raise no_transformer(root, home, OPENERS) from FileNotFoundError(index)
    opened = []
    for path, expected in sorted(_shards(index).items()):
        file = TensorFile.open(path)
        if strange := sorted(expected ^ file.tensors.keys()):
            raise ModelError(
                f"{path}: its tensors differ from the index, for example {strange[0]!r}; copy the model again"
            )
        opened.append(file)
    return opened


def _shards(index: Path) -> dict[Path, set[str]]:
    """The files in an index, with the tensors of each."""
    try:
        places: dict[str, str] = parse_mapping(read_regular(index, MAX_BYTES))["weight_map"]
        files: dict[Path, set[str]] = {index.parent / name: set() for name in places.values()}
        for tensor, name in places.items():
            files[index.parent / name].add(tensor)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: cannot be read as an index of shards ({error!r})") from error
    if not files:
        raise ModelError(f"{index}: names no tensors; copy the model again")
    if outside := [path for path in files if path.parent != index.parent]:
        raise ModelError(f"{index}: {outside[0].name} is outside the folder; put all shards next to the index")
    if missing := sorted(path.name for path in files if not path.is_file()):
        raise ModelError(f"{index}: names {missing[0]}, which is missing; copy the model again") from FileNotFoundError(
            missing[0]
        )
    return files
