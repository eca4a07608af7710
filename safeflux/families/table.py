"""The columns of a family table. Plain frozen records: no torch, no model, no logic."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Layout = Literal["diffusers", "bfl"]
Kind = Literal["ff", "norm", "mlp", "attn", "weight"]


@dataclass(frozen=True)
class Part:
    """One tensor that holds a piece of each bit of a site.

    In a neuron site, bit j is row (`axis` 0) or column (`axis` 1) number `start + j`; in a weight site, bit (i, j) is
    element (`start + i`, j). `start` is what lies `before`; what is left of the axis between `before` and `after` is
    the width of the site, and all parts of a site must agree on it.
    """

    tensor: str
    """Name of the tensor; `{n}` stands for the block number."""
    axis: int = 0
    before: int = 0
    """What lies ahead of the site along `axis`, in units of `dim`, the model's hidden width."""
    after: int = 0
    """What lies behind it, in the same unit."""


@dataclass(frozen=True)
class Rule:
    """One sort of site: its name in diffusers, its kind, and the tensors that hold it in each layout."""

    fqn: str
    kind: Kind
    parts: Mapping[Layout, tuple[Part, ...]]


@dataclass(frozen=True)
class Family:
    """One model family: how to recognise it, and every site that it has."""

    name: str
    markers: Mapping[Layout, tuple[str, ...]]
    """Tensors that a model of this family has, all of them; a model that only looks alike lacks one."""
    dim: Mapping[Layout, str]
    """The matrix whose number of rows is the hidden width `dim`."""
    rules: tuple[Rule, ...]
