"""What attacks on weights share: a copy of the transformer that may be changed, and where the masks are in it."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch

from safeflux.evaluation.attacks.base import Attack, Kind, Shot, Size
from safeflux.evaluation.attacks.kinds import gradients
from safeflux.evaluation.attacks.things import Thing
from safeflux.evaluation.attacks.victim import Victim
from safeflux.masks.mask_set import MaskSet
from safeflux.model.apply import apply_masks_

Hidden = dict[str, torch.Tensor]
"""Parameter -> bool of its shape, True where it is masked; parameters without a masked element are left out."""


def copied(victim: Victim) -> torch.nn.Module:
    """A copy of the transformer as it stands, with weights that may be trained."""
    made: torch.nn.Module = copy.deepcopy(victim.pipe.transformer).requires_grad_(True)
    return made


def hidden_of(transformer: torch.nn.Module, masks: MaskSet) -> Hidden:
    """Where masks are in a transformer: written into a copy of ones, by the code that guards models."""
    if not masks:
        return {}
    probe = copy.deepcopy(transformer).requires_grad_(False)
    for parameter in probe.parameters():
        parameter.fill_(1)
    with apply_masks_(probe, masks):
        found = {name: parameter == 0 for name, parameter in probe.named_parameters()}
    return {name: where for name, where in found.items() if where.any()}


Fill = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]


class OnWeights(Attack):
    """Changes the weights, then asks for the thing by name."""

    kind = Kind.WEIGHTS

    def refusal(self, pipe: object) -> str | None:
        """Gradients are taken on packed latents."""
        return gradients.refusal(pipe)

    def shot(self, victim: Victim, transformer: torch.nn.Module, thing: Thing, size: Size, budget: float) -> Shot:
        """The judged prompts, drawn with other weights."""
        prompts = self.named(victim, thing, size)
        return Shot(budget, victim.with_transformer(transformer).draw(prompts, self.seeds(thing, size)))


class WithoutThing(OnWeights):
    """A change of the weights that does not depend on the thing: `change` makes it for a budget."""

    @abstractmethod
    def change(self, victim: Victim, budget: float, size: Size) -> torch.nn.Module:
        """The changed transformer."""

    def run(self, victim: Victim, thing: Thing, size: Size) -> Iterator[Shot]:
        """Change and draw."""
        for budget in self.budgets(size.level):
            yield self.shot(victim, self.change(victim, budget, size), thing, size, budget)


@torch.no_grad()
def fill_(transformer: torch.nn.Module, hidden: Hidden, make: Fill) -> None:
    """Fill what is hidden with what `make(name, weight, where)` gives, of the weight's shape."""
    parameters = dict(transformer.named_parameters())
    for name, where in hidden.items():
        weight = parameters[name]
        weight[where] = make(name, weight, where)[where]


def row_means(weight: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """The mean magnitude of the kept elements in each row, in the weight's shape; of a vector, over all of it."""
    rows, keep = (weight, ~where) if weight.ndim > 1 else (weight[None], ~where[None])
    means = (rows.abs() * keep).sum(-1, keepdim=True) / keep.sum(-1, keepdim=True).clamp(min=1)
    return means.expand(rows.shape).reshape(weight.shape)
