"""Words found by gradients: prompts that anybody could type, searched on pictures of the thing."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from safeflux.evaluation.attacks.base import Attack, Cost, Kind, Level, Part, Shot, Size
from safeflux.evaluation.attacks.kinds import gradients
from safeflux.evaluation.attacks.kinds.learned import BATCH, NewWords
from safeflux.evaluation.attacks.kinds.words import single_tokens, tables_of
from safeflux.evaluation.attacks.registry import register
from safeflux.evaluation.attacks.things import Thing
from safeflux.evaluation.attacks.victim import Victim

_LENGTH = 4
"""Words of a prompt that are searched for."""
_TRIED = 6
"""Swaps of one step that are tried."""
_STRIDE = 10
"""How much larger the steps of vectors are that are projected to words, which lie far apart."""


class Search(Attack):
    """Searches words that stand for the thing in the templates, of those that both tokenizers have as one token."""

    kind = Kind.PROMPTS
    unit = "gradients"

    def budgets(self, level: Level) -> tuple[float, ...]:
        """Steps of the search."""
        return (10,) if level == "quick" else (10, 30, 90)

    def num_pictures(self, size: Size) -> int:
        """As for words that are learned."""
        return 16

    def refusal(self, pipe: Any) -> str | None:
        """It searches on packed latents, with two text encoders."""
        return gradients.refusal(pipe)


class Place:
    """The words that are searched for: vectors at their places in both encoders, and the words that come near."""

    def __init__(self, victim: Victim) -> None:
        self.soft = NewWords(victim, _LENGTH)
        self.known = single_tokens(victim.pipe)
        self.names = list(self.known)
        tables = tables_of(victim.pipe)
        self.rows = [table.weight.detach()[[ids[k] for ids in self.known.values()]] for k, table in enumerate(tables)]

    def put(self, places: Sequence[int]) -> None:
        """Write the vectors of some words into the places."""
        with torch.no_grad():
            for vectors, rows in zip(self.soft.parameters, self.rows, strict=True):
                vectors.copy_(rows[list(places)])

    def text(self, places: Sequence[int]) -> str:
        """The words as they are typed."""
        return " ".join(self.names[k] for k in places)


@register
class SwapWords(Search):
    """Greedy coordinate gradients (GCG, Zou et al., arXiv 2307.15043), with UnlearnDiffAtk's loss (arXiv 2310.11868).

    The gradient with respect to both encoders' input embeddings ranks all swaps of one word; a few are tried on the
    same pictures and noises, and the best is kept.
    """

    name = "swap-words"
    summary = "four words, swapped by gradients (GCG on UnlearnDiffAtk's loss)"

    def cost(self, size: Size) -> Cost:
        """A gradient and some forwards a step; three forwards count as a gradient."""
        steps = int(self.budgets(size.level)[-1])
        return Cost(super().cost(size).pictures, steps * BATCH * (1 + (_TRIED + 1) // 3))

    def run(self, victim: Victim, thing: Thing, size: Size) -> Iterator[Shot]:
        """Begin with random words."""
        own, rng = victim.pictures[thing.name], self.rng(thing, size, Part.FIT)
        place, loss = Place(victim), gradients.StepLoss(victim, own)
        words, done = [int(k) for k in rng.integers(len(place.names), size=_LENGTH)], 0
        with gradients.frozen(victim):
            for budget in self.budgets(size.level):
                while done < budget:
                    words, done = self._step(place, loss, words, rng), done + 1
                    victim.drawn(BATCH)
                text = place.text(words)
                prompts = [template.format(text) for template in self.templates(victim, thing, size)]
                yield Shot(budget, victim.draw(prompts, self.seeds(thing, size)), note=text)

    def _step(self, place: Place, loss: gradients.StepLoss, words: list[int], rng: Any) -> list[int]:
        places = [int(k) for k in rng.integers(len(loss.pictures), size=BATCH)]
        templates, state = [loss.pictures[k].template for k in places], rng.bit_generator.state

        def error(candidate: list[int]) -> torch.Tensor:
            rng.bit_generator.state = state  # the same noise for all
            place.put(candidate)
            return loss(places, place.soft.encode(templates), rng)

        slopes = torch.autograd.grad(error(words), place.soft.parameters)
        gain = -torch.stack([slope @ rows.T for slope, rows in zip(slopes, place.rows, strict=True)]).sum(0)
        best = gain.flatten().topk(_TRIED).indices.tolist()
        swaps = [[*words[:k], new, *words[k + 1 :]] for k, new in (divmod(one, len(place.names)) for one in best)]
        with torch.no_grad():
            return min([words, *swaps], key=lambda candidate: float(error(candidate)))


@register
class ProjectWords(Search):
    """P4D's way (arXiv 2309.06135): vectors are learned, and at each gradient stand in for the nearest words."""

    name = "project-words"
    summary = "four words, learned as vectors and projected (P4D)"

    def cost(self, size: Size) -> Cost:
        """One gradient a step."""
        return Cost(super().cost(size).pictures, int(self.budgets(size.level)[-1]) * BATCH)

    def run(self, victim: Victim, thing: Thing, size: Size) -> Iterator[Shot]:
        """The gradient is taken at the projected words and moves the vectors behind them."""
        own, rng = victim.pictures[thing.name], self.rng(thing, size, Part.FIT)
        place, loss, done = Place(victim), gradients.StepLoss(victim, own), 0
        free = [vectors.detach().clone() for vectors in place.soft.parameters]
        adam = torch.optim.Adam(
            [{"params": [f], "lr": 3 * rate} for f, rate in zip(free, place.soft.rates, strict=True)]
        )
        with gradients.frozen(victim):
            for budget in self.budgets(size.level):
                while done < budget:
                    place.put(_nearest(free, place))
                    places = [int(k) for k in rng.integers(len(own), size=BATCH)]
                    encoded = place.soft.encode([own[k].template for k in places])
                    slopes = torch.autograd.grad(loss(places, encoded, rng), place.soft.parameters)
                    for vectors, slope in zip(free, slopes, strict=True):
                        vectors.grad = slope
                    adam.step()
                    victim.drawn(BATCH)
                    done += 1
                text = place.text(_nearest(free, place))
                prompts = [template.format(text) for template in self.templates(victim, thing, size)]
                yield Shot(budget, victim.draw(prompts, self.seeds(thing, size)), note=text)


def _nearest(free: Sequence[torch.Tensor], place: Place) -> list[int]:
    """For each place the word whose embeddings are nearest in both encoders, each in units of its own table."""
    each = [torch.cdist(f, rows) / rows.square().mean().sqrt() for f, rows in zip(free, place.rows, strict=True)]
    found: list[int] = torch.stack(each).sum(0).argmin(dim=1).tolist()
    return found
