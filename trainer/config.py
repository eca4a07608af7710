"""What a training run is asked for. Pydantic; every field says its unit. Imports no torch."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from safeflux.errors import ConfigError

Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """Base of the configuration's parts: unknown keys are errors, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PromptConfig(Part):
    """The prompts, as templates and what fills them. A thing is written with its article: `a dagger`."""

    concepts: dict[str, tuple[str, ...]]
    """Concept to erase -> the words that training uses for it. The evaluation keeps other words for itself."""
    neutral: tuple[str, ...]
    """Things to preserve, used in training. The evaluation uses others."""
    anchor: str = "nothing"
    """What stands in a prompt in the concept's place to say what should be drawn instead."""
    single: tuple[str, ...]
    """Templates with `{thing}` and the slots."""
    pair: tuple[str, ...] = ()
    """Templates with `{first}`, `{second}` and the slots: the concept beside a thing to preserve."""
    slots: dict[str, tuple[str, ...]] = {}
    """Slot name -> its values, e.g. styles."""
    pair_share: Share = 0.5
    """Share of prompts made from the pair templates, where there are any."""

    @model_validator(mode="after")
    def _complete(self) -> "PromptConfig":
        if not self.concepts or not all(self.concepts.values()):
            raise ValueError("concepts: expected at least one concept with at least one word")
        if not self.neutral or not self.single:
            raise ValueError("expected at least one neutral thing and one single template")
        return self


class SaliencyConfig(Part):
    """The method `saliency`: rounds that switch bits off until the concept is gone, then rounds that exchange."""

    rounds: Count = 40
    """Rounds of saliency at most; they end when validation finds the concept gone."""
    bits_off: Count = 500
    """Bits switched off in each round of saliency, at most."""
    bits_on: Annotated[int, Field(ge=0)] = 100
    """Bits switched on again in each round of saliency, at most: those whose return lowers the whole loss."""
    exchange_rounds: Annotated[int, Field(ge=0)] = 8
    """Rounds after that, which exchange bits by the gradient of the whole loss."""
    exchange_off: Count = 100
    """Bits switched off in the first exchange round, at most; the number falls linearly to 0."""
    exchange_on: Count = 150
    """Bits switched on in the first exchange round, at most; falls likewise."""
    erase_batches: Count = 2
    """Batches of erase prompts a round."""
    neutral_batches: Count = 4
    """Batches of neutral prompts a round."""
    preserve: Annotated[float, Field(ge=0)] = 4.0
    """beta: weight of the preservation loss beside the erasure loss."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """How much of a round's gradients is carried over from the rounds before."""
    price_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The same for the second-order price, which is noisier and changes less from round to round."""


class GateConfig(Part):
    """The method `gates`: hard-concrete gates under Adam."""

    rounds: Count = 20
    """Rounds, all of which are run; the best validated mask is the result."""
    steps_per_round: Count = 10
    """Optimiser steps a round, of one erase and one neutral batch each."""
    lr: Annotated[float, Field(gt=0)] = 0.15
    """Learning rate of Adam."""
    initial: Annotated[float, Field(gt=0)] = 3.0
    """Size of log alpha at the start: positive for a bit that is kept, negative for one that is off."""
    preserve: Annotated[float, Field(ge=0)] = 1.0
    """beta: weight of the preservation loss beside the erasure loss."""
    share: Annotated[float, Field(ge=0)] = 0.3
    """lambda: weight of the share of gates that are expected to be closed."""


class TrainConfig(Part):
    """One category on one base model."""

    category: str
    """The policy category that the mask will serve."""
    model: str = "emoji-flux"
    """A folder that `FluxPipeline.from_pretrained` loads, or `emoji-flux` for the embedded one."""
    prompts: PromptConfig
    kinds: tuple[Literal["ff", "mlp", "norm", "weight"], ...] = ("weight",)
    """Kinds of site that may be masked."""
    method: Literal["saliency", "gates"] = "saliency"
    """How bits are chosen; the group of options of the same name is its own."""
    saliency: SaliencyConfig = SaliencyConfig()
    gates: GateConfig = GateConfig()
    initial: Path | None = None
    """A mask file to start from. The method `saliency` then skips to its exchange rounds."""
    together_with: tuple[Path, ...] = ()
    """Mask files of other categories, each switched on in a random half of the batches: masks made to be AND-ed."""
    steps: Count = 4
    """Sampling steps of the training rollout."""
    height: Count = 64
    """Pixels."""
    width: Count = 64
    """Pixels."""
    max_sequence_length: Count = 20
    """T5 tokens of a prompt."""
    batch: Count = 32
    """Prompts a batch."""
    target_found: Share = 0.06
    """A mask erases enough if the judge finds the concepts in no more than this share of validation pictures: rounds of
    saliency then end, and the result is the one of such masks that preserves best."""
    validate_every: Count = 2
    """Rounds between validations."""
    validation_prompts: Count = 96
    """Pictures of a validation, for each of three questions: concepts, things to preserve alone, and beside them."""
    evaluation_each: Annotated[int, Field(ge=0)] = 16
    """Pictures a concept, for each question, of the evaluation that goes into the mask file; 0 leaves it out."""
    seed: int = 0
    """Seed of prompts and noises of the training; validation and evaluation derive others from it."""


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Read a YAML configuration; `overrides` replace top-level keys.

    Raises:
        ConfigError: The file cannot be read or is not valid; the message lists every wrong key.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of options, got {type(data).__name__}")
    return make_config({**data, **(overrides or {})}, where=str(path))


def make_config(data: dict[str, Any], where: str) -> TrainConfig:
    """Check the options.

    Raises:
        ConfigError: One line for each wrong key.
    """
    try:
        return TrainConfig.model_validate(data)
    except ValidationError as error:
        lines = [f"{where}: {'.'.join(map(str, e['loc'])) or 'options'}: {e['msg']}" for e in error.errors()]
        raise ConfigError("\n".join(lines)) from error
