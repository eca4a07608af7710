"""How files name and fuse tensors, and where diffusers' parameters are in them. No torch, no files.

Two layouts: that of diffusers, and that of Black Forest Labs (ComfyUI, Forge, SD.Next), which fuses q, k, v and MLP and
often has a prefix, next to text encoders and a VAE.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from safeflux.errors import ModelError
from safeflux.families import BY_NAME, FAMILIES, Layout, Renaming
from safeflux.families.blocks import SPELLINGS
from safeflux.families.sites import Shapes

_PREFIX = "model.diffusion_model."
_SIDE = ("scale_weight", "weight_scale", "scale_input", "input_scale", "scaled_fp8", "comfy_quant")
"""Suffixes of tensors that describe how others are quantised; not parameters of the model."""


def own_names(names: Iterable[str]) -> dict[str, str]:
    """Return the transformer's own tensors: the name without its prefix -> the name in the file.

    Example:
        >>> own_names(["model.diffusion_model.img_in.weight", "vae.conv.weight"])
        {'img_in.weight': 'model.diffusion_model.img_in.weight'}
    """
    names = list(names)
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in names) else ""
    own = (name for name in names if name.startswith(prefix) and not is_scale(name))
    return {name.removeprefix(prefix): name for name in own}


def is_scale(name: str) -> bool:
    """Whether a tensor only describes how another is quantised."""
    return name.endswith(_SIDE)


def layout_of(names: Iterable[str]) -> Layout:
    """Return the layout of these tensors; anything unknown counts as diffusers', which is refused later by name."""
    names = set(names)
    return "bfl" if any(set(family.markers["bfl"]) <= names for family in FAMILIES) else "diffusers"


@dataclass(frozen=True)
class Piece:
    """A parameter of diffusers as rows of a tensor in a file."""

    tensor: str
    begin: int
    """The first row."""
    shape: tuple[int, ...]
    is_swapped: bool = False

    def places(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Numbers of elements of the parameter, counted row by row, as numbers of elements of the tensor."""
        columns = int(np.prod(self.shape[1:], dtype=np.int64))
        rows, column = np.divmod(places, columns)
        if self.is_swapped:
            rows = (rows + self.shape[0] // 2) % self.shape[0]
        return (rows + self.begin) * columns + column


def parameters(shapes: Shapes, layout: Layout, family: str) -> dict[str, Piece]:
    """Return every parameter that diffusers would make of these tensors, by its name there.

    Args:
        shapes: The transformer's own tensors, without a prefix.
        layout: Their layout.
        family: The model family's name.

    Raises:
        ModelError: A tensor belongs to no parameter that is known.
    """
    if layout == "diffusers":
        return {name: Piece(name, 0, shape) for name, shape in shapes.items()}
    table = BY_NAME[family]
    dim = shapes[table.dim[layout]][0]
    spelt = {_usual(name): name for name in shapes}
    found = {
        renaming.diffusers.format(n=n): _piece(renaming, spelt[name], dim, shapes)
        for n in _block_numbers(shapes)
        for renaming in table.renamings
        if (name := renaming.bfl.format(n=n)) in spelt
    }
    if strange := sorted(shapes.keys() - {piece.tensor for piece in found.values()}):
        raise ModelError(f"tensor {strange[0]!r} is none that a {table.name} model has; {len(strange)} such in all")
    return found


def _usual(name: str) -> str:
    """The spelling of a BFL tensor's name that the families' tables have."""
    for other, usual in SPELLINGS.items():
        if name.endswith(other):
            return name.removesuffix(other) + usual
    return name


def _piece(renaming: Renaming, tensor: str, dim: int, shapes: Mapping[str, tuple[int, ...]]) -> Piece:
    rows, *rest = shapes[tensor]
    begin, end = renaming.begin * dim, rows if renaming.end is None else renaming.end * dim
    return Piece(tensor, begin, (end - begin, *rest), renaming.is_swapped)


def _block_numbers(shapes: Shapes) -> list[int]:
    """The block numbers in any name, and 0: a renaming outside the blocks is found with each of them."""
    return sorted({0} | {int(part) for name in shapes for part in name.split(".")[1:3] if part.isdecimal()})
