"""What a campaign will cost, said before it starts: pictures and gradients of each attack, and minutes here."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from safeflux.evaluation.attacks.base import Cost
from safeflux.evaluation.attacks.campaign import Campaign
from safeflux.evaluation.attacks.kinds import gradients
from safeflux.evaluation.attacks.victim import Picture, Victim
from safeflux.masks.mask_set import MaskSet


@dataclass(frozen=True)
class Bill:
    """What is still to be done.

    Attributes:
        costs: Attack -> pictures and gradients over all arms and things.
        seconds_per_picture: Measured on this machine.
        seconds_per_gradient: Of one sampling step for one picture, likewise.
    """

    costs: dict[str, Cost]
    seconds_per_picture: float
    seconds_per_gradient: float

    @property
    def minutes(self) -> dict[str, float]:
        """Attack -> minutes."""
        return {
            name: (cost.pictures * self.seconds_per_picture + cost.gradients * self.seconds_per_gradient) / 60
            for name, cost in self.costs.items()
        }

    def __str__(self) -> str:
        """One line for people."""
        pictures, steps = (
            sum(getattr(cost, kind) for cost in self.costs.values()) for kind in ("pictures", "gradients")
        )
        return f"{pictures:,} pictures and {steps:,} gradients, about {sum(self.minutes.values()):.0f} minutes"


def bill_of(campaign: Campaign) -> Bill:
    """Count what is missing, and measure a batch of pictures and, where attacks take gradients, one of these."""
    costs: dict[str, Cost] = {}
    for unit in campaign.missing():
        before, more = costs.get(unit.attack.name, Cost(0)), unit.attack.cost(campaign.size)
        costs[unit.attack.name] = Cost(before.pictures + more.pictures, before.gradients + more.gradients)
    victim = Victim(campaign.pipe, MaskSet({}), campaign.phrases, campaign.settings, batch=campaign.batch)
    prompts = [campaign.phrases.templates[0].format(campaign.phrases.neutral[0])] * 4
    picture = _seconds(lambda: victim.draw(prompts, range(4))) / 4 if costs else 0.0
    has_gradients = any(cost.gradients for cost in costs.values())
    return Bill(costs, picture, _seconds_per_gradient(victim, prompts) if has_gradients else 0.0)


def _seconds_per_gradient(victim: Victim, prompts: list[str]) -> float:
    """With respect to the encoded prompts."""
    images = victim.draw(prompts, range(len(prompts)))
    tokens, pooled = (part.detach().requires_grad_(True) for part in gradients.encode(victim, prompts))
    loss = gradients.StepLoss(victim, [Picture("{}", image) for image in images])
    with gradients.frozen(victim):
        step = _seconds(lambda: loss(range(len(prompts)), (tokens, pooled), np.random.default_rng(0)).backward())
    return step / len(prompts)


def _seconds(work: Callable[[], object]) -> float:
    """Of the second run; the first warms up."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
