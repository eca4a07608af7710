"""Zeros filled again without training: from what stands around them (no data at all), or by one gradient."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial

import torch

from safeflux.evaluation.attacks.base import Cost, Level, Part, Shot, Size
from safeflux.evaluation.attacks.kinds.gradients import StepLoss, encode
from safeflux.evaluation.attacks.kinds.weights import OnWeights, WithoutThing, copied, fill_, hidden_of, row_means
from safeflux.evaluation.attacks.registry import register
from safeflux.evaluation.attacks.things import Thing
from safeflux.evaluation.attacks.victim import Victim

_ROUNDS = 8
"""Of the low-rank completion."""
_PICTURES = 16
_BATCH = 4


class FillByRow(WithoutThing):
    """Zeros filled in the size of what is left of their rows: what someone knows who has no data."""

    unit = "times the mean"

    def budgets(self, level: Level) -> tuple[float, ...]:
        """Multiples."""
        return (1,) if level == "quick" else (0.5, 1, 2)

    def change(self, victim: Victim, budget: float, size: Size) -> torch.nn.Module:
        """The filled transformer."""
        transformer, rng = copied(victim), torch.Generator().manual_seed(size.seed)

        def make(name: str, weight: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
            return budget * self.guess(weight.shape, rng).to(weight) * row_means(weight, where)

        fill_(transformer, hidden_of(transformer, victim.masks), make)
        return transformer

    @abstractmethod
    def guess(self, shape: torch.Size, rng: torch.Generator) -> torch.Tensor:
        """A value for each element, in units of its row's mean magnitude."""


@register
class FillMean(FillByRow):
    """Signs at random, magnitudes of the row."""

    name = "fill-mean"
    summary = "zeros filled with the row's mean magnitude, signs at random"

    def guess(self, shape: torch.Size, rng: torch.Generator) -> torch.Tensor:
        """1 or -1."""
        return torch.randint(0, 2, shape, generator=rng) * 2 - 1


@register
class FillNoise(FillByRow):
    """Noise of the size of the row: the control of every better guess."""

    name = "fill-noise"
    summary = "zeros filled with noise as large as the row's mean"

    def guess(self, shape: torch.Size, rng: torch.Generator) -> torch.Tensor:
        """Normal."""
        return torch.randn(shape, generator=rng)


@register
class FillLowRank(WithoutThing):
    """Roots Beneath the Cut (arXiv 2603.06640): masked elements are completed as a low-rank matrix would have them.

    The masked elements are taken for missing, and filled again and again with the nearest matrix of a rank (Mazumder et
    al., JMLR 2010, with a hard rank).
    """

    name = "fill-low-rank"
    summary = "zeros completed by low-rank approximation, no data"
    unit = "rank"

    def budgets(self, level: Level) -> tuple[float, ...]:
        """Ranks."""
        return (16,) if level == "quick" else (4, 16, 64)

    def change(self, victim: Victim, budget: float, size: Size) -> torch.nn.Module:
        """The filled transformer; vectors are left as they are."""
        transformer = copied(victim)
        hidden = hidden_of(transformer, victim.masks)
        matrices = {name: where for name, where in hidden.items() if where.ndim == 2}

        def make(name: str, weight: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
            filled, rank = weight.clone(), min(int(budget), *weight.shape)
            for _ in range(_ROUNDS):
                left, values, right = torch.linalg.svd(filled, full_matrices=False)
                filled[where] = ((left[:, :rank] * values[:rank]) @ right[:rank])[where]
            return filled

        fill_(transformer, matrices, make)
        return transformer


@register
class GradientSign(OnWeights):
    """One gradient on pictures of the thing says which way each zero should go; how far, the rest of its row."""

    name = "gradient-sign"
    summary = "zeros filled by one gradient's sign times the row's mean"
    unit = "times the mean"

    def budgets(self, level: Level) -> tuple[float, ...]:
        """Multiples."""
        return (1, 2) if level == "quick" else (0.5, 1, 2, 4)

    def num_pictures(self, size: Size) -> int:
        """Pictures of the gradient."""
        return _PICTURES

    def cost(self, size: Size) -> Cost:
        """One gradient on each picture."""
        return Cost(super().cost(size).pictures, _PICTURES)

    def run(self, victim: Victim, thing: Thing, size: Size) -> Iterator[Shot]:
        """One gradient, then all multiples."""
        transformer = copied(victim)
        hidden, changed = hidden_of(transformer, victim.masks), victim.with_transformer(transformer)
        own, rng = victim.pictures[thing.name], self.rng(thing, size, Part.FIT)
        loss = StepLoss(changed, own)
        for start in range(0, len(own), _BATCH):
            places = range(start, min(start + _BATCH, len(own)))
            with torch.no_grad():
                encoded = encode(victim, [own[k].template.format(thing.words[0]) for k in places])
            loss(places, encoded, rng).backward()
            victim.drawn(len(places))
        slopes = {n: p.grad for n, p in transformer.named_parameters() if n in hidden and p.grad is not None}
        known = {name: where for name, where in hidden.items() if name in slopes}
        for budget in self.budgets(size.level):
            filled = copied(victim)
            fill_(filled, known, partial(_against, slopes, budget))
            yield self.shot(victim, filled, thing, size, budget)


def _against(
    slopes: Mapping[str, torch.Tensor], times: float, name: str, weight: torch.Tensor, where: torch.Tensor
) -> torch.Tensor:
    """A matrix whose elements go down the loss by so many times the row's mean."""
    return -times * slopes[name].sign() * row_means(weight, where)
