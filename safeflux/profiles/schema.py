"""What a profile is: the schema of the file."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from safeflux.packs.schema import Text
from safeflux.policy.schema import Name, Strict, Versioned
from safeflux.policy.strict_file import json_schema

Kind = Literal["ff", "mlp", "norm", "weight"]
Pixels = Annotated[int, Field(gt=0, le=16384)]
Gigabytes = Annotated[float, Field(gt=0)]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]


class Training(Strict):
    """How masks are trained on the model."""

    height: Pixels = Field(512, description="Pixels of the training rollout.")
    width: Pixels = Field(512, description="Pixels of the training rollout.")
    steps: int = Field(4, gt=0, description="Sampling steps of the training rollout.")
    guidance: float | None = Field(None, ge=0, description="Guidance scale; default: the pipeline's own.")
    max_sequence_length: int = Field(256, gt=0, description="Text tokens of a prompt.")
    batch: int = Field(1, gt=0, description="Prompts a batch.")
    recompute: Literal["none", "step", "block"] = Field("block", description="What the backward pass recomputes.")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Dtype of the frozen weights.")
    kinds: tuple[Kind, ...] = Field(("weight",), strict=False, description="Kinds of site that suit the model.")


class Memory(Strict):
    """The memory of a training run with these settings and one mask, in GB, as `safeflux train` sums it."""

    accelerator: Gigabytes = Field(description="Weights, the largest gated layer, activations.")
    main: Gigabytes = Field(description="The masks, in the main memory; the estimates of every bit lie on the disk.")


class Speech(Strict):
    """For a model that was trained on captions of one form: these templates and things, whatever a pack says."""

    single: Texts = Field(description="Templates with {thing} and the slots.")
    pair: Texts = Field((), description="Templates with {first}, {second} and the slots.")
    slots: dict[str, Texts] = Field({}, description="Slot -> its values, e.g. styles.")
    neutral: Texts = Field(description="Things that the model draws, for training.")
    held_out: Texts = Field((), description="Others, that only the evaluation uses.")
    synonyms: dict[Text, Texts] = Field(
        {},
        description="Thing -> its other names, which stand among these things too; the evaluation asks by the first.",
    )
    packs: tuple[str, ...] = Field((), strict=False, description="Packs of what else it draws; preserved too.")

    def all_names(self, words: Iterable[str]) -> frozenset[str]:
        """Words, and every other name of the same things: who erases a bicycle does not preserve a bike."""
        given = frozenset(words)
        same = (frozenset((first, *others)) for first, others in self.synonyms.items())
        return given.union(*(names for names in same if names & given))


class Profile(Versioned):
    """A model: what it is, its call, its training."""

    kind: Literal["Profile"] = Field(description="Always Profile.")
    name: Name = Field(description="What commands call it.")
    description: str = Field("", description="One line for the people who choose a model.")
    model: str = Field(min_length=1, description="A hub id, or the path of a folder.")
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = Field(None, description="The hub's commit.")
    licence: str = Field("", description="The licence of the weights, for people.")
    pipeline: str = Field(description="The class of diffusers.")
    call: dict[str, Any] = Field(
        {}, description="Arguments of the pipeline's call: size, steps, guidance, prompt length."
    )
    training: Training = Field(Training(), description="How masks are trained on it.")
    transformer: dict[str, Any] = Field(
        {}, description="The transformer's class, and its configuration where it differs from the class's defaults."
    )
    index: dict[str, Any] = Field(
        {}, description="Entries of model_index.json that tell a folder of it from others of the same shape."
    )
    memory: Memory | None = Field(None, description="The memory that training needs with these settings.")
    detectors: tuple[Text, ...] = Field(
        (),
        strict=False,
        description="The detectors of its pictures, where it has some of its own. The first one validates training.",
    )
    speech: Speech | None = Field(None, description="For a model that knows captions of one form alone.")

    @property
    def source(self) -> str:
        """What `load_pipeline` loads: the folder, or the id with its revision."""
        return f"{self.model}@{self.revision}" if self.revision else self.model


def profile_schema() -> dict[str, Any]:
    """The JSON Schema of a profile, draft-07, for editors."""
    return json_schema(Profile, "safeflux profile")
