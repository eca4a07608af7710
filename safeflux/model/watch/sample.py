"""A secret sample of a module's weights and buffers, drawn anew for each guard, to find changes that no mask covers.

Which elements are drawn comes from the system's randomness and stays in memory, so that nobody can craft a change that
avoids them. What was drawn is compared element by element, tensor by tensor. Of a matrix as many elements are drawn as
it has rows or columns, whichever are more, spread so that each row and each column has at least one (a Latin
hypercube). Biases and norms are tensors of one column, and compared whole; so is a tensor of at most `SIZE` elements.

What it finds: a change of one whole row or column is missed only if rounding hides it in all of their drawn elements;
one of r rows and c columns of a matrix of m rows and n columns is missed with chance exp(-r c / min(m, n)) or less. A
merged adapter touches all rows and columns that it is not zero on, and nearly every element there moves by more than
rounding where its size is 0.1 % of the weights' in bfloat16, and far less in float32 (`benchmarks/hidden_changes.py`).
Casts round, so that weights that were cast may be those drawn, rounded to any of the float types that models are served
in. Packed weights are compared within half a step of the packing: a change of 1 % is found with more than 99 % in 8
bits; in 4 bits nothing below about 10 %.
"""

import secrets
from dataclasses import dataclass

import numpy as np
import torch

from safeflux.model.apply import Undo
from safeflux.model.forward_values import UnreadableError, Values
from safeflux.model.index_sets import Points, common
from safeflux.model.watch.alike import are_alike
from safeflux.model.writes import as_bits

SIZE = 64
"""So many elements of a tensor are drawn at least, where it has them."""


@dataclass(frozen=True)
class Difference:
    """Names of the weights that are others now, and of those that cannot be read, with the reason."""

    changed: tuple[str, ...]
    unreadable: tuple[str, ...]

    @property
    def changed_names(self) -> str:
        """Some of those that changed, for an error."""
        return _some(self.changed)

    @property
    def unreadable_names(self) -> str:
        """Some of those that cannot be read, for an error."""
        return _some(self.unreadable)


class Sample:
    """Values of some elements of every weight and buffer of a module; `compare` says which are others now."""

    def __init__(self, root: torch.nn.Module) -> None:
        """Draw places, and note what is there.

        Weights that cannot be read now (on no device, packed by an unknown library) are not noted.
        """
        now = Values(root)
        self.names = frozenset(now.tensors)
        """Every weight that there was, adapters aside."""
        self._parts: dict[str, tuple[slice, torch.Size]] = {}
        """Where each weight's places are among all, and its shape."""
        self.found_elsewhere: tuple[str, ...] = ()
        """Weights that a comparison with the base model's files last found to be others, wherever the places are."""
        drawing = np.random.Generator(np.random.PCG64DXSM(secrets.randbits(128)))
        readable, drawn, start = [], [], 0
        for name, tensor in (*now.tensors.items(), *now.buffers.items()):
            try:
                values = now.read(name, tensor.shape)
            except UnreadableError:
                continue
            readable.append(values)
            drawn.append(_draw(tensor.shape, drawing))
            self._parts[name] = slice(start, start + len(drawn[-1])), tensor.shape
            start += len(drawn[-1])
        self._places = torch.cat([torch.empty(0, dtype=torch.int64), *drawn])
        self._values = _picked(readable, self._places, [part for part, _ in self._parts.values()])

    def masked_by(self, undo: Undo) -> torch.Tensor:
        """Return which of the drawn places masks switch off; bool, (places,)."""
        found = torch.zeros(len(self._places), dtype=torch.bool)
        for name, elements, width in undo.places():
            if name in self._parts:
                part, _ = self._parts[name]
                here, _ = common(Points(self._places[part]), elements, width)
                assert isinstance(here, Points)
                found[part][here.places] = True
        return found

    def compare(
        self,
        root: torch.nn.Module,
        masked: torch.Tensor | None = None,
        *,
        rounded: bool = False,
        now: Values | None = None,
    ) -> Difference:
        """Read the same places, and say which weights are others now.

        Args:
            root: The module.
            masked: Places that are not compared (`masked_by`).
            rounded: Let weights differ by what adding something to them and taking it away again rounds.
            now: Where the weights are held, if that is known already.
        """
        now = now or Values(root)
        read: dict[str, torch.Tensor] = {}
        lost = []
        for name, (_, shape) in self._parts.items():
            try:
                read[name] = now.read(name, shape)
            except UnreadableError as error:
                lost.append(f"{name} ({error})")
        values = torch.full_like(self._values, torch.nan)
        can_read = torch.ones_like(values, dtype=torch.bool)
        for name in self._parts.keys() - read.keys():
            can_read[self._parts[name][0]] = False
        values[can_read] = _picked(list(read.values()), self._places, [self._parts[name][0] for name in read])
        differs = (values != self._values) & ~(values.isnan() & self._values.isnan())
        if masked is not None:
            differs &= ~masked
        ends = [part.stop for part, _ in self._parts.values()]
        rows = np.unique(np.searchsorted(ends, differs.nonzero().flatten().numpy(), side="right"))
        names = list(self._parts)
        others = []
        for name in (names[row] for row in rows if names[row] in read):
            part, _ = self._parts[name]
            kept = slice(None) if masked is None else ~masked[part]
            was, is_, places = (each[part][kept] for each in (self._values, values, self._places))
            if not are_alike(was, is_, read[name], places, now.packing(name), rounded=rounded):
                others.append(name)
        return Difference(tuple(others), tuple(lost))


def _draw(shape: torch.Size, drawing: np.random.Generator) -> torch.Tensor:
    """Places in a tensor, rising: some in every row and every column, evenly."""
    rows, columns = (shape[0] if shape else 1), shape[1:].numel()
    size = min(rows * columns, max(rows, columns, SIZE))
    if size == rows * columns:
        return torch.arange(size)
    in_columns = np.concatenate([drawing.permutation(columns) for _ in range(0, size, columns)])[:size]
    return torch.from_numpy(np.unique(np.arange(size) * rows // size * columns + in_columns))


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _picked(tensors: list[torch.Tensor], places: torch.Tensor, parts: list[slice]) -> torch.Tensor:
    """Elements of tensors, each by its part of the places, one after the other; float64, on the CPU."""
    on = {device: places.to(device) for device in {tensor.device for tensor in tensors}}
    picked: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    kinds = [(tensor.device, tensor.dtype) for tensor in tensors]
    with torch.no_grad():
        for tensor, part, kind in zip(tensors, parts, kinds, strict=True):
            # by its bits, since torch picks no elements of float8; `take` copies no tensor that is not contiguous
            picked.setdefault(kind, []).append(as_bits(tensor).take(on[tensor.device][part]))
        found = {
            (device, dtype): iter(torch.cat(each).cpu().view(dtype).double().split([len(part) for part in each]))
            for (device, dtype), each in picked.items()
        }
        return torch.cat([torch.empty(0, dtype=torch.float64), *(next(found[kind]) for kind in kinds)])
