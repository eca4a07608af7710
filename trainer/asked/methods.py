"""Options of the methods that choose which bits are off."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from safeflux.trainer.asked.part import Count, Part, Share, Weight

from safeflux.policy.validate import PlacedError


class SaliencyConfig(Part):
    """The method `saliency`: rounds that switch bits by the effect of each on the whole loss."""

    rounds: Count = 80
    """Rounds at most; they end earlier when validation has found every category gone and the last rounds are done."""
    warm_up: Annotated[int, Field(ge=0)] = 0
    """How many of these only gather estimates. One round's are noisy; masks to start from are spoilt by them."""
    bits_off: Count = 150
    """Bits of a category switched off in a round, at most, while validation still finds the category."""
    bits_on: Annotated[int, Field(ge=0)] = 50
    """Bits switched on again in a round, at most: those whose return lowers the whole loss."""
    last_rounds: Annotated[int, Field(ge=0)] = 0
    """Rounds after these, or after every category is gone. They switch on as many bits as off, fewer from round to
    round: the masks come to rest."""
    erase_batches: Count = 1
    """Batches of erase prompts a round, for each category on average: one for each, the others by how much is left."""
    preserve_batches: Count = 2
    """Batches of prompts to preserve a round."""
    beta: Weight | Literal["auto"] = "auto"
    """Weight of the preservation loss beside the erasure loss. `auto`: the weight that keeps preservation within its
    budget, by dual ascent."""
    preserve_budget: Annotated[float, Field(gt=0)] = 0.015
    """For `auto`: preservation loss allowed, in units of the variance of the base model's outputs."""
    balance: Weight = 0.5
    """How much more the erasure of a category counts than another's for each time that more is left of it: an exponent;
    0: all alike. Otherwise concepts that are hard to erase lose their bits to preservation."""
    price_floor: Annotated[float, Field(gt=0)] = 3.0
    """Added to every bit's price, in units of the mean price. The higher it is, the more the gain alone decides
    which bits go off: fewer bits erase as much, but each costs more preservation, so that rounds must be small."""

    @model_validator(mode="after")
    def _switches(self) -> "SaliencyConfig":
        if self.rounds <= self.warm_up:
            raise PlacedError(
                ("rounds",),
                f"expected more than the {self.warm_up} of `warm_up`, which only gather estimates, got {self.rounds}: "
                "no bit would ever be switched",
            )
        return self


class GateConfig(Part):
    """The method `gates`: hard-concrete gates under Adam."""

    rounds: Count = 20
    """Rounds, all of which are run; the best validated mask is the result."""
    steps_per_round: Count = 10
    """Optimiser steps a round, of one erase batch a category and one batch to preserve each."""
    lr: Annotated[float, Field(gt=0)] = 0.15
    """Learning rate of Adam."""
    initial: Annotated[float, Field(gt=0)] = 3.0
    """Size of log alpha at the start: positive for a bit that is kept, negative for one that is off."""
    beta: Weight = 1.0
    """Weight of the preservation loss beside the erasure loss."""
    lambda_: Annotated[Weight | Literal["auto"], Field(alias="lambda")] = 0.3
    """Weight of the share of gates that are expected to be closed. `auto`: the weight that leads to the target share,
    by dual ascent."""
    target_share: Share = 0.01
    """For `auto`: share of the bits that may be closed."""

    model_config = ConfigDict(populate_by_name=True)
