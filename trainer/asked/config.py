"""The configuration of a training run. Pydantic; every field says its unit. Imports no torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from safeflux.trainer.asked.erasure import NoisedConfig, TermConfig
from safeflux.trainer.asked.many import ManyConfig
from safeflux.trainer.asked.methods import GateConfig, SaliencyConfig
from safeflux.trainer.asked.part import Count, Part, Share, Weight

from safeflux.errors import ConfigError
from safeflux.packs.templates import BY_KIND, Templates, faults
from safeflux.policy.validate import PlacedError, messages, suggest
from safeflux.policy.yaml_reader import Loc
from safeflux.profiles.call import call_faults
from safeflux.reference import NAME
from safeflux.reference.vocabulary import TargetKind

Words = tuple[str, ...]

NULL, DROPPED = "null", "dropped"
"""Two anchors that are no text of their own: the empty prompt, and the prompt without the concept."""


class TrajectoryConfig(Part):
    """A target that keeps the early steps and turns away from the concept in the later ones (arXiv 2504.12782)."""

    hold_steps: Annotated[int, Field(ge=0)] = 1
    """First sampling steps that follow the base model's trajectory for the prompt."""
    reversal: Weight = 0.5
    """How far the later steps turn away: 0 draws the anchor, 1 as far beyond it as the prompt is on this side."""


class CategoryConfig(Part):
    """The concepts that one mask erases. A thing is written with its article: `a dagger`."""

    concepts: dict[str, Words]
    """Concept to erase -> the words that training uses for it. The evaluation keeps other words for itself."""
    kind: TargetKind = "object"
    """The kind of the concepts: `object`, `identity` or `style`. It selects the templates of a run without its own."""
    slot: str = "thing"
    """The placeholder of the templates that the words fill: `thing`, or another slot such as `style`."""
    anchor: str = DROPPED
    """The prompt to draw instead: `null` (the empty prompt), `dropped` (the prompt without the concept), or words
    that take the concept's place, e.g. `a ball`."""
    anchors: dict[str, str] = {}
    """Concept -> its own anchor, where it is not the one above."""
    trajectory: TrajectoryConfig | None = None
    """How the target is drawn; without, by the anchor in every step."""
    erase_pairs: Count | None = None
    """Erase prompts, each with its anchor and its own noise; without, as many as `prompts.erase_pairs`."""
    sites: Words = ("*",)
    """Which of the run's sites its mask may touch, as patterns of their names; each must match a site of the model."""

    @model_validator(mode="after")
    def _complete(self) -> "CategoryConfig":
        if not self.concepts or not all(self.concepts.values()):
            raise PlacedError(("concepts",), "expected at least one concept with at least one word")
        if unknown := [name for name in self.anchors if name not in self.concepts]:
            raise PlacedError(("anchors", unknown[0]), f"no such concept{suggest(unknown[0], self.concepts)}")
        return self

    def anchor_of(self, concept: str) -> str:
        """The anchor of a concept."""
        return self.anchors.get(concept, self.anchor)


class PromptConfig(Part):
    """Templates and the words that fill them; the same for every category of a run."""

    neutral: Words
    """Things to preserve, used in training. The evaluation uses others."""
    others: dict[str, CategoryConfig] = {}
    """Categories that this run does not train. They are preserved too, where no mask of theirs is on."""
    single: Words = ()
    """Templates with `{thing}` and the slots. Without any, single and pair are those of each category's kind
    (`safeflux.packs.templates`)."""
    pair: Words = ()
    """Templates with `{first}`, `{second}` and the slots: the concept beside a thing to preserve."""
    slots: dict[str, Words] = {}
    """Slot name -> its values, e.g. styles."""
    images: tuple[Path, ...] = ()
    """For a model that edits images (Kontext, FLUX.2): images to edit, one at random for each prompt; without, it draws
    from text alone. They are scaled to the size of the run."""
    erase_pairs: Count = 640
    """Erase prompts of a category that sets no number of its own. The base model's outputs are computed once."""
    preserve_pairs: Count = 2048
    """Prompts to preserve, each with its own noise."""
    category_share: Share = 0.25
    """Share of the prompts to preserve with a thing of a category; they serve where that category's mask is off."""

    @model_validator(mode="after")
    def _complete(self) -> "PromptConfig":
        if not self.neutral:
            raise PlacedError(("neutral",), "expected at least one neutral thing")
        if self.pair and not self.single:
            raise PlacedError(("pair",), "expected single templates too")
        return self

    def templates_of(self, kind: TargetKind) -> Templates:
        """The run's own templates or, without, those of a kind."""
        return Templates(self.single, self.pair) if self.single else BY_KIND[kind]


class Options(Part):
    """Everything of a run but the words: model, rollout, method, validation."""

    model: str = NAME
    """A folder that a FLUX pipeline of diffusers loads, a hub id that was downloaded, or `emoji-flux`."""
    detector: str | None = None
    """The spec of the detector that validates, e.g. `zero-shot:FOLDER`; without, nothing does."""
    call: dict[str, Any] = {}
    """Arguments of the pipeline's call for validation pictures; without a size, they have that of the rollout."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the frozen weights. Gates, estimates and optimiser are always float32."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Dtype of matrix products. `auto`: bf16 where the device multiplies it faster than float32. A resumed run keeps
    the dtype that it began with."""
    kinds: tuple[Literal["ff", "mlp", "norm", "weight", "image"], ...] = ("weight",)
    """Kinds of site that may be masked."""
    sites: Words = ("*",)
    """Which of these sites, as patterns of their names: `transformer_blocks.1?.*`; each must match at least one."""
    method: Literal["saliency", "gates"] = "saliency"
    """How bits are chosen; the group of options of the same name is its own."""
    saliency: SaliencyConfig = SaliencyConfig()
    gates: GateConfig = GateConfig()
    initial: tuple[Path, ...] = ()
    """Mask files to start from, of categories of this run; the others start with every bit kept."""
    together_with: tuple[Path, ...] = ()
    """Mask files of other categories. They stay as they are, and are switched on in a part of the batches."""
    erase_loss: Literal["relative", "absolute"] = "relative"
    """`relative`: each pair's distance counts relative to the base model's change between prompt and anchor, so
    that small things count as much as big ones. `absolute`: plain mean squared distance, as in the paper."""
    preserve_loss: Literal["relative", "absolute"] = "absolute"
    """`relative`: what a picture lost counts relative to how much its content stands out from its ground, so that thin
    and pale things count as much as big ones. `absolute`: plain mean squared distance, as in the paper."""
    erase_terms: TermConfig = TermConfig()
    """What erase batches ask."""
    preserve_terms: TermConfig = TermConfig()
    """What batches to preserve ask; they have no `bank`."""
    noised: NoisedConfig = NoisedConfig()
    """Of the terms that start from noised pictures."""
    many: ManyConfig = ManyConfig()
    """Of runs of many categories."""
    hard_share: Share = 0.7
    """Share of the erase prompts that are drawn by how much is left of their concept, rather than all alike."""
    spoilt_share: Share = 0.7
    """The same for preservation: prompts, and masks that are on alone, are drawn by how much was spoilt."""
    steps: Count = 4
    """Sampling steps of the training rollout."""
    height: Count = 64
    """Pixels."""
    width: Count = 64
    """Pixels."""
    guidance: Weight | None = None
    """Guidance scale; without, the pipeline's own default. Where the pipeline runs a second forward for it in each
    step (above 1, on models that are not distilled), so does the run."""
    max_sequence_length: Count = 20
    """T5 tokens of a prompt."""
    batch: Count = 32
    """Prompts a batch."""
    recompute: Literal["none", "step", "block"] = "step"
    """Activations that the backward pass recomputes instead of keeping them in memory: none, each sampling step, or
    within a step each transformer block too."""
    target_found: Share = 0.01
    """A mask erases enough if the detector finds the concepts in no more than this share of validation pictures, of
    those that ask for them alone and of those that ask for another thing too, under this mask alone and under all
    masks of the run."""
    validate_every: Count = 8
    """Rounds between validations."""
    validation_prompts: Count = 192
    """Pictures of a validation a category, and half as many for each of two questions on preserved things: alone, and
    beside a concept."""
    confirm: bool = True
    """Whether a category counts as gone only where a second look, at pictures of other prompts and noises, finds it
    gone too. One set of pictures that is looked at after so many rounds passes by chance."""
    tensorboard: bool = False
    """Whether the rounds are also logged for TensorBoard; needs the extra `train`."""
    minimise: bool = False
    """Whether the found masks are made smaller at the end, as far as validation finds the concepts no more often. They
    then only just pass on its pictures, and may not on others. Masks that take the thing are never made smaller:
    validation asks for it by its words."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of prompts and noises of the training; validation and evaluation derive others from it."""

    @model_validator(mode="after")
    def _can_be_called(self) -> "Options":
        for key, fault in call_faults(self.call):
            raise PlacedError(("call", key), fault)
        return self

    @model_validator(mode="after")
    def _no_bank(self) -> "Options":
        if self.preserve_terms.bank:
            raise PlacedError(("preserve_terms", "bank"), "expected 0; adversarial embeddings serve erasure alone")
        return self

    @model_validator(mode="after")
    def _has_pictures(self) -> "Options":
        if self.noised.tuned and not self.erase_terms.takes_things:
            raise PlacedError(
                ("noised", "tuned"),
                "expected 0, since erase_terms has `named` alone: a run keeps pictures to train on for other terms",
            )
        return self

    @model_validator(mode="after")
    def _fits_many(self) -> "Options":
        is_plain = not (self.erase_terms.takes_things or self.preserve_terms.takes_things)
        for key, fault in self.many.conflicts(self.batch, is_plain and self.method == "saliency", bool(self.initial)):
            raise PlacedError(("many", key), fault)
        return self


class TrainConfig(Options):
    """One or several categories on one base model; each gets a mask of its own, and any of them may be combined."""

    categories: dict[str, CategoryConfig]
    """Policy category -> the concepts that its mask erases."""
    prompts: PromptConfig

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        for loc, fault in conflicts(self.categories, self.prompts):
            raise PlacedError(loc, fault)
        return self


def conflicts(categories: Mapping[str, CategoryConfig], prompts: PromptConfig) -> Iterator[tuple[Loc, str]]:
    """What no single key shows: the place and the fault of categories, slots and templates that do not fit together."""
    if not categories:
        yield ("categories",), "expected at least one"
    slots = {"thing", *prompts.slots}
    for name in sorted(categories.keys() & prompts.others.keys()):
        yield ("prompts", "others", name), f"{name} is to be erased, not preserved"
    every: dict[Loc, CategoryConfig] = {("categories", name): one for name, one in categories.items()}
    every |= {("prompts", "others", name): one for name, one in prompts.others.items()}
    for where, category in every.items():
        if category.slot not in slots:
            yield (*where, "slot"), f"expected one of {', '.join(sorted(slots))}, got {category.slot!r}"
    for name, category in categories.items():
        templates = prompts.templates_of(category.kind)
        for group, texts in (("single", templates.single), ("pair", templates.pair)):
            for k, text in enumerate(texts if category.slot in slots else ()):
                alone = Templates(**{"single": (), group: (text,)})
                for fault in faults(alone, slots, {category.slot}):
                    yield ("prompts", group, k), f"the template for {name} {fault}"


def make_config(data: dict[str, Any], where: str) -> TrainConfig:
    """Check the options.

    Raises:
        ConfigError: One line for each wrong key.
    """
    try:
        return TrainConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {text}" for text in messages(TrainConfig, error))) from error
