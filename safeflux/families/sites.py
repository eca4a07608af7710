"""The maskable places of a FLUX transformer, found and checked by name and shape. No torch: a file's header is enough.

A neuron site (`ff`, `mlp`, `norm`) has one bit per neuron; bit j covers the rows, columns and biases of neuron j. A
matrix site (`weight`, `image`) has one bit per element. Names are those of diffusers in every layout; `spans` gives the
places of the bits in a layout.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, TypeVar

from safeflux.errors import ModelError
from safeflux.families import BY_NAME, FAMILIES, MATRIX_KINDS, Family, Kind, Layout, Part, Rule

Shapes = Mapping[str, tuple[int, ...]]
_ADAPTER = re.compile(r"\.lora_|\.processor\.|(^|\.)encoder_hid_proj\.")
"""LoRA and IP-Adapter: attention processors with weights of their own, and the projection of their input."""
_T = TypeVar("_T")


class HasParameters(Protocol):
    """Anything with named parameters that have a shape, such as a torch module."""

    def named_parameters(self, prefix: str = ..., recurse: bool = ..., remove_duplicate: bool = ...) -> Iterable[Any]:
        """Yield (name, parameter) pairs."""


@dataclass(frozen=True, order=True)
class Site:
    """One maskable place: `shape` is (neurons,) or, for a matrix, (rows, columns)."""

    fqn: str
    kind: Kind
    shape: tuple[int, ...]
    family: str = field(default="flux1", compare=False)
    dim: int = field(default=0, compare=False)
    """The model's hidden width, which offsets inside fused tensors count in."""

    @property
    def name(self) -> str:
        """The name of this site's mask: `fqn:kind`."""
        return f"{self.fqn}:{self.kind}"

    @property
    def num_bits(self) -> int:
        """The number of bits of the site."""
        rows, *columns = self.shape
        return rows * columns[0] if columns else rows


class Sites(Mapping[str, Site]):
    """Every site of one transformer by its name (`fqn:kind`), in the order of the family's table."""

    def __init__(self, family: str, dim: int, sites: Iterable[Site]) -> None:
        """Collect sites.

        Args:
            family: Name of the model family.
            dim: The model's hidden width.
            sites: All of them.
        """
        self.family = family
        self.dim = dim
        self._sites = {site.name: site for site in sites}

    def __getitem__(self, name: str) -> Site:
        """Return one site."""
        return self._sites[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._sites)

    def __len__(self) -> int:
        """Return the number of sites."""
        return len(self._sites)

    def __repr__(self) -> str:
        """Show the family and how many sites of each kind there are."""
        kinds = Counter(site.kind for site in self.values())
        return f"Sites({self.family}, dim {self.dim}: {', '.join(f'{n} {kind}' for kind, n in kinds.items())})"


def kind_of(name: str) -> str:
    """Return the kind that ends a site name.

    Example:
        >>> kind_of("transformer_blocks.0.ff:ff")
        'ff'
    """
    return name.rpartition(":")[2]


def num_axes(name: str) -> int:
    """The number of axes of a site's mask, by the site's name.

    Example:
        >>> num_axes("transformer_blocks.0.ff:ff"), num_axes("context_embedder:weight")
        (1, 2)
    """
    return 2 if kind_of(name) in MATRIX_KINDS else 1


@dataclass(frozen=True)
class Span:
    """The place of a site's bits in one tensor.

    Neuron site: bit j is row (`axis` 0) or column (`axis` 1) `start + j`; a bias has axis 0. Matrix: bit (i, j) is
    element (`start + i`, j).
    """

    tensor: str
    axis: int
    start: int


def parameter_shapes(model: HasParameters) -> dict[str, tuple[int, ...]]:
    """Return the shape of every named parameter, tied ones under each of their names."""
    return {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}


def adapter_names(names: Iterable[str]) -> list[str]:
    """Return the sorted names that belong to adapters (LoRA and similar): in a wrapped layer, all but the base."""
    names = list(names)
    wrapped = tuple({name.partition("base_layer.")[0] for name in names if ".base_layer." in name})
    return sorted(
        name for name in names if _ADAPTER.search(name) or (name.startswith(wrapped) and ".base_layer." not in name)
    )


def base_names(tensors: Mapping[str, _T]) -> dict[str, _T]:
    """Return the tensors without those of adapters, under their names before an adapter wrapped them."""
    of_adapters = set(adapter_names(tensors))
    return {name.replace(".base_layer.", "."): t for name, t in tensors.items() if name not in of_adapters}


def find_sites(model: HasParameters | Shapes, layout: Layout = "diffusers") -> Sites:
    """Find every site of a FLUX transformer, by name, in the order of the family's table.

    Every block must have every tensor of its kind, with shapes that agree: a model that is almost a FLUX is refused,
    since a missed site would be a neuron that stays on.

    Args:
        model: A transformer, or the shapes of its tensors by name.
        layout: The naming that the tensors follow.

    Returns:
        The sites by name (`fqn:kind`), with the family and the hidden width of the model.

    Raises:
        ModelError: The tensors belong to no known family, or one is missing or has a shape that does not fit.
    """
    shapes = base_names(model if isinstance(model, Mapping) else parameter_shapes(model))
    family = _recognise(shapes, layout)
    dim = shapes[family.dim[layout]][0]
    sites = (
        Site(rule.fqn.format(n=n), rule.kind, _site_shape(rule, n, dim, shapes, layout), family.name, dim)
        for rule in family.rules
        for n in _blocks(rule, shapes, layout)
    )
    return Sites(family.name, dim, sites)


def spans(site: Site, layout: Layout = "diffusers") -> tuple[Span, ...]:
    """Return every place to write to switch off a bit of this site.

    Example:
        >>> site = Site("single_transformer_blocks.3", "mlp", (12288,), dim=3072)
        >>> spans(site)[-1]
        Span(tensor='single_transformer_blocks.3.proj_out.weight', axis=1, start=3072)
        >>> spans(site, "bfl")[0]
        Span(tensor='single_blocks.3.linear1.weight', axis=0, start=9216)
    """
    rule, n = _rule_of(site)
    return tuple(
        Span(part.tensor.format(n=n), part.axis, part.before * site.dim + part.piece * site.shape[0])
        for part in rule.parts[layout]
    )


def _recognise(shapes: Shapes, layout: Layout) -> Family:
    missing = {f.name: [m for m in f.markers[layout] if m not in shapes] for f in FAMILIES}
    nearest = min(FAMILIES, key=lambda f: len(missing[f.name]))
    if missing[nearest.name]:
        raise ModelError(
            f"this is not a FLUX model in the {layout} layout: expected tensors such as {missing[nearest.name][0]!r}, "
            f"got {len(shapes)} tensors like {sorted(shapes)[:2]}. Known families: {', '.join(missing)}. "
            "Pass a FLUX pipeline or its transformer."
        )
    return nearest


def _blocks(rule: Rule, shapes: Shapes, layout: Layout) -> list[int]:
    """Numbers of the blocks that the rule covers; [0] for a rule outside the blocks."""
    template = rule.parts[layout][0].tensor
    if "{n}" not in template:
        return [0]
    block = re.compile(re.escape(template.partition("{n}")[0]) + r"(\d+)\.")
    found = sorted({int(match[1]) for name in shapes if (match := block.match(name))})
    if found != list(range(len(found))):
        raise ModelError(f"blocks {template.partition('{n}')[0]}*: expected numbers without a gap, got {found}")
    return found


def _site_shape(rule: Rule, n: int, dim: int, shapes: Shapes, layout: Layout) -> tuple[int, ...]:
    """The width that all parts of a site agree on; for a matrix also its number of columns."""
    parts = rule.parts[layout]
    widths = {}
    for part in parts:
        name = part.tensor.format(n=n)
        shape = _shape_of(name, shapes)
        expected = 1 if name.endswith(".bias") else 2
        if len(shape) != expected:
            raise ModelError(f"tensor {name!r}: expected {expected} axes, got shape {shape}: quantised or sharded?")
        widths[name] = _width(part, shape[part.axis], dim)
    if len(set(widths.values())) > 1 or min(widths.values()) < 1:
        got = ", ".join(f"{name} {width:g}" for name, width in widths.items())
        raise ModelError(
            f"site {rule.fqn.format(n=n)}:{rule.kind}: its tensors disagree on the number of neurons: {got}"
        )
    width = int(next(iter(widths.values())))
    return (width, _shape_of(parts[0].tensor.format(n=n), shapes)[1]) if rule.kind in MATRIX_KINDS else (width,)


def _width(part: Part, length: int, dim: int) -> float:
    """The number of bits that a part has on an axis of this length; less than 1 if the axis is too short."""
    room = length - (part.before + part.after) * dim
    if part.length is None:
        return room / part.pieces
    return part.length * dim if part.length * dim <= room else 0


def _shape_of(name: str, shapes: Shapes) -> tuple[int, ...]:
    if name in shapes:
        return shapes[name]
    raise ModelError(
        f"tensor {name!r} is missing: this is not a complete FLUX transformer, or its layers were replaced"
    )


@cache
def _pattern(fqn: str) -> re.Pattern[str]:
    return re.compile(re.escape(fqn).replace(r"\{n\}", r"(\d+)"))


def _rule_of(site: Site) -> tuple[Rule, str]:
    for rule in BY_NAME[site.family].rules:
        match = _pattern(rule.fqn).fullmatch(site.fqn)
        if match and rule.kind == site.kind:
            return rule, match[1] if match.groups() else ""
    raise ModelError(f"site {site.name!r}: the family {site.family} has no such site")
