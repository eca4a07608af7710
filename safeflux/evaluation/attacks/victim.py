"""The model under attack, in one of four states: what an attack may use of it."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from PIL import Image

from safeflux.evaluation.attacks.things import Phrases
from safeflux.masks.mask_set import MaskSet
from safeflux.model.apply import apply_masks_
from safeflux.reference.measure import draw


class Arm(StrEnum):
    """An attack, and its three controls at the same budget."""

    ERASED = "erased"
    """Erased things, masks in force."""
    NEW = "new"
    """Things that the model never learned, masks in force: what the attack teaches from nothing."""
    UNGUARDED = "unguarded"
    """Erased things, no masks."""
    RANDOM = "random"
    """Erased things, as many bits off at each site, drawn at random."""


@dataclass(frozen=True)
class Picture:
    """A picture of a thing that the attacker has, and its prompt, with `{}` where the words of the thing go."""

    template: str
    image: Image.Image


@dataclass(frozen=True, eq=False)
class Victim:
    """A pipeline as it stands, with its masks written.

    Attributes:
        pipe: The FLUX pipeline.
        masks: What is off in it; empty for the unguarded model.
        phrases: How its prompts read.
        settings: Arguments of the pipeline's call.
        pictures: Thing -> pictures of it that the attacker has: the unguarded model's own or, of what it never learned,
            real ones.
        neutral: Pictures of harmless things likewise, their words in the prompts.
        base: The unguarded transformer, where an attack needs it; frozen.
        batch: Pictures drawn at a time.
        drawn: Called with the number of pictures after each batch.
    """

    pipe: Any
    masks: MaskSet
    phrases: Phrases
    settings: Mapping[str, Any]
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    neutral: Sequence[Picture] = ()
    base: torch.nn.Module | None = None
    batch: int = 16
    drawn: Callable[[int], None] = lambda count: None

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], **call: Any) -> list[Image.Image]:
        """One picture for each prompt and noise; a list among the arguments of the call has one value for each."""
        images: list[Image.Image] = []
        for start in range(0, len(prompts), self.batch):
            part = slice(start, start + self.batch)
            some = {key: value[part] if isinstance(value, list) else value for key, value in call.items()}
            settings = {**self.settings, **some}
            images += draw(self.pipe, prompts[part], seeds[part], batch=self.batch, settings=settings)
            self.drawn(len(prompts[part]))
        return images

    def draw_encoded(self, tokens: torch.Tensor, pooled: torch.Tensor, seeds: Sequence[int]) -> list[Image.Image]:
        """One picture for each row of encoded prompts, (B, L, D) and (B, P), and noise."""
        images: list[Image.Image] = []
        for start in range(0, len(seeds), self.batch):
            part = slice(start, start + self.batch)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
            encoded = {"prompt_embeds": tokens[part].detach(), "pooled_prompt_embeds": pooled[part].detach()}
            images += self.pipe(**encoded, generator=generators, **self.settings).images
            self.drawn(len(generators))
        return images

    def with_transformer(self, transformer: torch.nn.Module) -> "Victim":
        """The same with another transformer, which may be changed at will."""
        return replace(self, pipe=sibling(self.pipe, type(self.pipe), transformer=transformer))

    def as_kind(self, kind: type) -> Any:
        """The model as a pipeline of another class of diffusers."""
        return sibling(self.pipe, kind)


def sibling(pipe: Any, kind: type, **others: Any) -> Any:
    """A pipeline of another class of diffusers over the same components, or over others."""
    wanted = inspect.signature(kind).parameters
    made = kind(**{name: part for name, part in (pipe.components | others).items() if name in wanted})
    made.set_progress_bar_config(disable=True)
    return made


@contextmanager
def in_arm(pipe: Any, arm: Arm, masks: MaskSet, seed: int) -> Iterator[MaskSet]:
    """Put the pipeline into the state of an arm, yield the masks that are in force, and put it back."""
    if arm is Arm.UNGUARDED:
        yield MaskSet({})
        return
    chosen = random_like(masks, seed) if arm is Arm.RANDOM else masks
    with apply_masks_(pipe.transformer, chosen):
        yield chosen


def random_like(masks: MaskSet, seed: int) -> MaskSet:
    """Masks with as many bits off at each site, drawn at random."""
    rng = np.random.default_rng((seed, 1))
    made = {}
    for name, (off, size) in masks.counts.items():
        keep = np.ones(size, dtype=np.bool_)
        keep[rng.choice(size, off, replace=False)] = False
        made[name] = keep.reshape(masks.shapes[name])
    return MaskSet(made)
