"""The columns of a family table. Plain frozen records: no torch, no model, no logic."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Layout = Literal["diffusers", "bfl"]
MatrixKind = Literal["weight", "image"]
"""Kinds with one bit per element of a matrix: of the text path, and of the image stream and its shared layers."""
Kind = Literal["ff", "norm", "mlp", MatrixKind]
MATRIX_KINDS: tuple[MatrixKind, ...] = get_args(MatrixKind)


@dataclass(frozen=True)
class Part:
    """One tensor that holds a piece of each bit of a site.

    In a neuron site, bit j is row (`axis` 0) or column (`axis` 1) number `start + j`; in a site of matrix elements,
    bit (i, j) is element (`start + i`, j). What is left of the axis between `before` and `after` falls into `pieces` of
    the same width, which is the width of the site, unless `length` says it; the bits begin where piece number `piece`
    does. All parts of a site must agree on the width.
    """

    tensor: str
    """Name of the tensor; `{n}` stands for the block number."""
    axis: int = 0
    before: int = 0
    """Length ahead of the site along `axis`, in units of `dim`, the model's hidden width."""
    after: int = 0
    """Length behind it, in the same unit."""
    pieces: int = 1
    """How many tensors of the site's width are fused here: 2 in a gated MLP, whose gates and values are one matrix."""
    piece: int = 0
    """Which of them this part is, from 0."""
    length: int | None = None
    """The width of the site in units of `dim`, where what lies behind it has no such length."""


@dataclass(frozen=True)
class Rule:
    """One sort of site: its name in diffusers, its kind, and the tensors that hold it in each layout."""

    fqn: str
    kind: Kind
    parts: Mapping[Layout, tuple[Part, ...]]


@dataclass(frozen=True)
class Renaming:
    """One parameter in diffusers, and the rows of a BFL tensor that hold it."""

    diffusers: str
    """Name of the parameter; `{n}` stands for the block number."""
    bfl: str
    begin: int = 0
    """First row, in units of `dim`."""
    end: int | None = None
    """Where the rows end, in the same unit; None for the last row."""
    is_swapped: bool = False
    """Whether the two halves of the rows come in the other order: BFL's last modulation is shift, scale."""


@dataclass(frozen=True)
class Family:
    """One model family: how to recognise it, and every site that it has."""

    name: str
    markers: Mapping[Layout, tuple[str, ...]]
    """Tensors that a model of this family has, all of them; a model that only looks alike lacks one."""
    dim: Mapping[Layout, str]
    """The matrix whose number of rows is the hidden width `dim`."""
    rules: tuple[Rule, ...]
    renamings: tuple[Renaming, ...]
    """Every parameter of the family in BFL's layout, maskable or not; some variants lack some."""
