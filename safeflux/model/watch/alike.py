"""Whether numbers that differ stand for the same weights all the same: cast, packed by a quantiser, or rounded."""

from collections.abc import Iterator

import torch

_CASTS = (
    *((kind,) for kind in (torch.float32, torch.bfloat16, torch.float16)),
    *((kind,) for kind in (torch.float8_e4m3fn, torch.float8_e5m2)),
    *((half, byte) for half in (torch.bfloat16, torch.float16) for byte in (torch.float8_e4m3fn, torch.float8_e5m2)),
    *((torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)),
)
"""What a served model's weights may have been cast through, one after the other."""
_STEPS = {8: 1 / 250, 4: 0.16}
"""Half the widest step of integers of so many bits, in units of the largest value of a row, with some room."""


def are_alike(
    was: torch.Tensor,
    is_: torch.Tensor,
    tensor: torch.Tensor,
    places: torch.Tensor,
    packing: set[torch.dtype] | None,
    *,
    rounded: bool,
) -> bool:
    """Whether elements of a tensor are what they were.

    Args:
        was: Their values then; float64, (elements,), on the CPU.
        is_: Their values now.
        tensor: The tensor that has them now, or some whole rows of it.
        places: Where in it they are, counted row by row.
        packing: What it is packed in (`Values.packing`).
        rounded: Let them differ by what adding something to them and taking it away again rounds.
    """
    if packing is not None:
        return bool(((is_ - was).abs() <= _room(packing, was, _largest(tensor, places))).all())
    if not tensor.is_floating_point():
        return torch.equal(was, is_)
    if any(torch.equal(cast, is_) for cast in _casts(was)):
        return True
    room = torch.finfo(tensor.dtype).eps * (was.abs() + was.square().mean().sqrt())
    return rounded and bool(((is_ - was).abs() <= room).all())


def _casts(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """What casts of served models can make of values."""
    for kinds in _CASTS:
        cast = values
        for kind in kinds:
            cast = cast.to(kind)
        yield cast.double()


def _largest(tensor: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The largest size of a value in the row of each place; in all of a narrow tensor, where blocks span rows."""
    rows = tensor.reshape(tensor.shape[0], -1)
    if rows.shape[1] % 64:
        return rows.abs().amax().double().cpu()
    return torch.linalg.vector_norm(rows, torch.inf, dim=1).double().cpu()[places // rows.shape[1]]


def _room(packing: set[torch.dtype], values: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """How far a packed value may be from what was packed."""
    if packing & {torch.float8_e4m3fn, torch.float8_e5m2}:
        bits = 2 if torch.float8_e5m2 in packing else 3
        return values.abs() * 2.0 ** -(bits + 1) * 1.01 + largest * 2.0**-9
    return largest * _STEPS[8 if torch.int8 in packing else 4]
