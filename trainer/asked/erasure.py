"""What an erase batch asks of the masked model: the thing by its name, or what is still known of the thing itself."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator
from safeflux.trainer.asked.part import Count, Part, Share, Weight

Term = Literal["named", "own", "empty", "foreign", "bank"]
TERMS: tuple[Term, ...] = get_args(Term)


class TermConfig(Part):
    """How often batches ask by each term, relative to the others.

    `named` draws a picture from noise, as arXiv 2507.13386 does: it takes the thing from its word. The others take
    single steps from noised pictures of the thing, and so take the thing whatever the prompt says.
    """

    named: Weight = 1.0
    """The whole sampler, from noise, by the prompt."""
    own: Weight = 0.0
    """A step from a noised picture, by its own prompt, as img2img does."""
    empty: Weight = 0.0
    """The same by the empty prompt."""
    foreign: Weight = 0.0
    """The same by a prompt for other things."""
    bank: Weight = 0.0
    """The same by embeddings that are kept adversarial to the masks as they stand."""

    @model_validator(mode="after")
    def _some(self) -> "TermConfig":
        if not sum(self.weights):
            raise ValueError("expected a term with a weight above 0")
        return self

    @property
    def takes_things(self) -> bool:
        """Whether a term starts from pictures."""
        return sum(self.weights) > self.named

    @property
    def weights(self) -> tuple[float, ...]:
        """In the order of `TERMS`."""
        return tuple(getattr(self, term) for term in TERMS)


class NoisedConfig(Part):
    """Single steps from noised pictures, x_t = (1 - sigma) x_0 + sigma noise."""

    ceiling: Annotated[float, Field(gt=1)] = 3.0
    """A thing counts as unknown from this error on, in units of the base model's own."""
    target: Share = 0.15
    """A category is gone when no more than this of its pictures is known, over the last batches of every term."""
    least_sigma: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Noise levels are drawn evenly from here to 1."""
    bank_size: Count = 3
    """Adversarial embeddings a concept."""
    bank_steps: Annotated[int, Field(ge=0)] = 3
    """Steps that each embedding takes against the masks before a batch uses it."""
    bank_rate: Annotated[float, Field(gt=0)] = 0.03
    """How far a step moves each number, in units of the root mean square of the prompts' embeddings."""
    bank_reset: Share = 0.05
    """Share of the embeddings that start anew from another prompt before a batch."""
    reopened: Share = 0.0
    """Share of the bits that are off which a batch switches on at random: erasure must hold without them."""
    reopened_batches: Share = 0.3
    """Share of the erase batches that do so."""
    tuned: Share = 0.0
    """Share of the erase batches that meet the model after one step of fine-tuning on other pictures of the category:
    erasure must hold after it. The step is part of the loss to first order, and takes four bytes a bit."""
    tuned_rate: Annotated[float, Field(gt=0)] = 0.001
    """How far that step moves the weights, zeros included, in units of their own size: the root mean square. Ten times
    as far destroys what it should bring back."""
