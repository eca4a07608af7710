"""What a batch is of: the masks that are on, the pairs that chance has chosen, and what comes of it.

All randomness comes from (seed, round, batch): a batch is the same in every process and after a restart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from safeflux.trainer.asked.erasure import TERMS, NoisedConfig, Term, TermConfig
from safeflux.trainer.objective.losses import random_projection
from safeflux.trainer.objective.references import References
from safeflux.trainer.objective.vectors import PIECE

Stream = Literal["erase", "preserve", "gates", "pairs"]
_STREAMS: tuple[Stream, ...] = ("erase", "preserve", "gates", "pairs")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Drawn:
    """What chance has chosen for a batch, or for a part of one."""

    subset: tuple[int, ...]
    """Rows of the masks that are on."""
    pool: References
    indices: list[int]
    """Pairs of the pool."""
    weight: torch.Tensor
    """How likely each of them was to be drawn, (B,)."""
    term: Term
    state: int
    """The row of `Hardness`."""
    rng: np.random.Generator
    """For what is still to be drawn."""
    signs: torch.Generator | None = None
    """Of the projection of a batch to preserve."""

    def projected(self, output: torch.Tensor) -> torch.Tensor:
        """A random projection of the outputs of a batch to preserve; a scalar."""
        assert self.signs is not None
        return random_projection(output, self.signs)


@dataclass(frozen=True)
class Slope:
    """One batch: its loss, the categories whose masks were on, and gradients by the bits of the AND of these masks."""

    loss: float
    subset: tuple[int, ...]
    gradient: torch.Tensor
    """Of the loss; float32 (bits,)."""
    projection: torch.Tensor | None = None
    """Of a random projection of the output, whose square estimates the second order (`random_projection`)."""

    def others(self, gates: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Each row of the subset with the product of the others, (bits,), or () where there is no other.

        That product times a gradient by the AND of all is the gradient by the bits of the row. `gates` are those of all
        bits, or of the same part of them.
        """
        rows = list(self.subset)
        if len(rows) == 1:
            yield rows[0], torch.ones((), dtype=gates.dtype)
            return
        closed = (~gates[rows]).sum(dim=0, dtype=torch.int32) if gates.dtype == torch.bool else None
        for row in rows:
            if closed is None:
                yield row, product(gates, [other for other in rows if other != row])
            else:
                yield row, closed == (~gates[row]).to(closed.dtype)


def product(gates: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """The product of some rows; for bool rows their AND. That of one row is a view of it."""
    if len(rows) == 1:
        return gates[rows[0]]
    out = gates[rows[0]].clone()
    for row in rows[1:]:
        out.mul_(gates[row])
    return out


def reopened(gates: torch.Tensor, config: NoisedConfig, rng: np.random.Generator) -> torch.Tensor:
    """The gates with some closed bits open, in a part of the batches; relaxed gates as they are."""
    if not config.reopened or gates.dtype != torch.bool or rng.random() >= config.reopened_batches:
        return gates
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    out = gates.clone()
    for part in out.split(PIECE):
        part |= torch.rand(part.shape, generator=generator) < config.reopened
    return out


def descended(gates: torch.Tensor, gradient: torch.Tensor, rate: float) -> torch.Tensor:
    """The weights after one step down a gradient, as gates, float32 (bits,): dL/dz = dL/dW * W, and dW = W dz.

    Zeros take part in it like any other weight.

    Args:
        gates: Bool (bits,).
        gradient: dL/dz, (bits,).
        rate: Root mean square of the step, in units of each weight's own size.

    Examples:
        >>> descended(torch.tensor([True, False]), torch.tensor([3.0, -4.0]), rate=0.1)
        tensor([0.9151, 0.1131])
    """
    total = sum(float(part.float().square().sum()) for part in gradient.split(PIECE))
    scale = rate / max((total / len(gradient)) ** 0.5, 1e-30)
    return gates.float().sub_(gradient, alpha=scale)


def in_parts(asked: Sequence[_T], parts: int) -> Iterator[Sequence[_T]]:
    """As many batches as it takes, of `parts` parts each; the last may have fewer."""
    return (asked[k : k + parts] for k in range(0, len(asked), parts))


def draw_subset(rng: np.random.Generator, must: int, rows: int, alone: float = 0.5) -> tuple[int, ...]:
    """The rows whose masks are on: `must`, and none, all or some of the others.

    A batch with one mask on serves that one alone, so that a mask would otherwise hardly be seen without others: the
    share `alone` of the batches has none of the others on, and half of the rest all of them.
    """
    others = [k for k in range(rows) if k != must]
    kind = rng.random()
    count = 0 if kind < alone else len(others) if kind < (1 + alone) / 2 else int(rng.integers(len(others) + 1))
    return (must, *sorted(int(k) for k in rng.choice(others, count, replace=False)))


def draw_term(config: TermConfig, rng: np.random.Generator) -> Term:
    """What a batch asks; without a choice, no random number is taken."""
    weights = np.array(config.weights) / sum(config.weights)
    return TERMS[int(weights.argmax() if weights.max() == 1 else rng.choice(len(TERMS), p=weights))]


def drawn_uniformly(losses: torch.Tensor, weight: torch.Tensor) -> float:
    """The mean loss of a batch as if its pairs had been drawn uniformly, (B,) each: by importance weights."""
    return float(np.average(losses.numpy(), weights=1 / weight.numpy()))


def rng_of(seed: int, stream: Stream, *where: int) -> np.random.Generator:
    """The random numbers of one purpose at one place of a run with this seed."""
    return np.random.default_rng((seed, _STREAMS.index(stream), *where))
