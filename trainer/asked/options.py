"""The configuration of a run from a model's profile and packs. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from safeflux.trainer.asked.config import CategoryConfig, PromptConfig, TrainConfig, TrajectoryConfig

from safeflux.errors import ConfigError
from safeflux.packs.emoji import emoji_pack, emoji_packs
from safeflux.packs.neutral import STYLES, WORDS, split
from safeflux.packs.schema import Pack
from safeflux.policy.validate import suggest
from safeflux.profiles.load import gone_words, known_packs_of, load_profile, profile_of
from safeflux.profiles.schema import Profile
from safeflux.reference import NAME

TOGETHER: dict[str, Any] = {
    "saliency": {"rounds": 60, "warm_up": 4, "erase_batches": 1, "preserve_batches": 8, "preserve_budget": 0.03},
    "validate_every": 6,
    "validation_prompts": 128,
}
"""Options of a run that learns several masks. A batch to preserve serves all of them, and the budget is for all."""
BEYOND = TrajectoryConfig(hold_steps=0, reversal=0.5)
"""For a style. Where the prompt says none, the model draws each of its styles about as often, so that a style's word
that is merely ignored still gives that style now and then: the target must lie beyond the anchor."""

OF_A_STYLE = 2048
"""Erase prompts of a style, so that each thing comes up often enough with it."""

WHERE_TEXT_BEGINS = ("context_embedder:*", "transformer_blocks.0.*")
"""Sites of a style's mask: where its word comes in, a third of the text path's bits, which erases as much as all of it
(`benchmarks.style_sites`)."""


def options_of(profile: Profile, packs: Mapping[str, Pack], detector: str | None = None) -> dict[str, Any]:
    """The options of a run that learns one mask for each pack.

    Args:
        profile: The model. Its own templates and things, where it has them, replace those of the packs.
        packs: Category -> its pack.
        detector: The spec of what looks at the pictures; None for the first of the profile's own.
    """
    return {
        "categories": {name: _category(pack) for name, pack in packs.items()},
        "prompts": _prompts(profile, packs),
        "model": profile.source,
        "call": _call(profile.call, profile.training.height, profile.training.width),
        "detector": detector or _first(profile),
        **profile.training.model_dump(),
        **(TOGETHER if len(packs) > 1 else {}),
    }


def call_of(config: TrainConfig) -> dict[str, Any]:
    """The arguments of the pipeline's call for validation pictures, in the size of the training rollout.

    Those of the configuration override single ones of the model's profile.
    """
    profile = profile_of(config.model)
    usual = profile.call if profile else {"num_inference_steps": config.steps}
    return _call({**usual, **config.call}, config.height, config.width)


def text_layers_of(config: TrainConfig) -> tuple[int, ...] | None:
    """The text encoder's hidden states that validation pictures are drawn with, so that training reads the same."""
    layers = call_of(config).get("text_encoder_out_layers")
    return tuple(layers) if layers else None


def detector_of(config: TrainConfig) -> str | None:
    """The spec of the run's detector, or the first of its model's own; None for a run that nothing validates."""
    profile = profile_of(config.model)
    return config.detector or (_first(profile) if profile else None)


def _first(profile: Profile) -> str | None:
    """The detector that validates: the first of a model's own."""
    return next(iter(profile.detectors), None)


def _call(call: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    area = {"max_area": height * width} if "max_area" in call else {}  # Kontext scales a size to an area
    return {**call, "height": height, "width": width, **area}


def embedded_options(categories: Sequence[str]) -> dict[str, Any]:
    """The options of a run that learns the masks of these categories of the embedded model, with its judge.

    Raises:
        ConfigError: The embedded model has no such category.
    """
    if unknown := [name for name in categories if name not in emoji_packs()]:
        raise ConfigError(
            f"category {unknown[0]!r}: emoji-flux does not know it; for other categories and models name packs with "
            f"--pack{suggest(unknown[0], emoji_packs())}"
        )
    return options_of(load_profile(NAME), {name: emoji_pack(name) for name in categories})


def _prompts(profile: Profile, packs: Mapping[str, Pack]) -> PromptConfig:
    speech, taken = profile.speech, gone_words(profile, packs)
    others = {
        name: _category(pack)
        for name, pack in known_packs_of(profile).items()
        if name not in packs and (speech or pack.is_ready) and taken.isdisjoint(pack.every_word)
    }
    if speech:
        return PromptConfig(
            neutral=tuple(word for word in speech.neutral if word not in taken),
            others=others,
            single=speech.single,
            pair=speech.pair,
            slots=speech.slots,
        )
    own = [pack.prompts for pack in packs.values()]
    is_one_kind = len({pack.target for pack in packs.values()}) == 1
    named = tuple(dict.fromkeys(word for pack in packs.values() for word in pack.neutral))
    return PromptConfig(
        neutral=tuple(word for word in named or split(WORDS)[0] if word not in taken),
        others=others,
        single=tuple(dict.fromkeys(text for one in own for text in one.single)) if is_one_kind else (),
        pair=tuple(dict.fromkeys(text for one in own for text in one.pair)) if is_one_kind else (),
        slots={"style": STYLES} if any(pack.slot == "style" for pack in packs.values()) else {},
    )


def _category(pack: Pack) -> CategoryConfig:
    anchors = {name: concept.anchor for name, concept in pack.concepts.items() if concept.anchor}
    of_style = {"trajectory": BEYOND, "erase_pairs": OF_A_STYLE, "sites": WHERE_TEXT_BEGINS}
    return CategoryConfig(
        concepts=pack.words,
        kind=pack.target,
        slot=pack.slot,
        anchor=pack.anchor,
        anchors=anchors,
        **(of_style if pack.target == "style" else {}),
    )
