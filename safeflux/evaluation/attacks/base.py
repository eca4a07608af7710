"""The protocol of an attack: what it is given, what it gives back, and what it costs.

An attack gets one victim, a model in some state, and one thing that the victim should not draw. It gives back pictures,
for growing budgets. Whether they show the thing is judged elsewhere: no attack sees the detectors.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar, Literal
from zlib import crc32

import numpy as np
from PIL import Image

from safeflux.evaluation.attacks.things import Phrases, Thing
from safeflux.evaluation.attacks.victim import Victim

Level = Literal["quick", "full"]


class Kind(StrEnum):
    """What an attacker may touch."""

    PROMPTS = "prompts"
    EMBEDDINGS = "embeddings"
    PICTURES = "pictures"
    WEIGHTS = "weights"


class Part(StrEnum):
    """What noises and prompts are for. Those of the parts never meet, nor those of training or of `safeflux eval`."""

    FIT = "fit"
    """What the attacker learns or searches with."""
    JUDGE = "judge"
    """What is looked at in the end."""


FIRST_SEED = {Part.FIT: 2**62, Part.JUDGE: 2**62 + 2**61}
"""Noises of training are numbers below 2**62, those of the other questions of an evaluation below 2**61."""
_SEED_BITS = 16  # noises of one attack on one thing


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        level: `quick` or `full`.
        things: Erased things that are attacked, and as many that were never learned; 0 for all.
        pictures: Pictures for each thing and budget.
        seed: Of prompts and noises, 0 to 4095.
    """

    level: Level
    things: int
    pictures: int
    seed: int = 0

    @classmethod
    def of(cls, level: Level, seed: int = 0, *, things: int | None = None, pictures: int | None = None) -> "Size":
        """The size of a level, or other numbers."""
        usual, drawn = _SIZES[level]
        return cls(level, usual if things is None else things, pictures or drawn, seed)

    def with_pictures(self, count: int) -> "Size":
        """The same with another number of pictures."""
        return replace(self, pictures=count)


_SIZES: dict[Level, tuple[int, int]] = {"quick": (6, 6), "full": (0, 10)}
"""Level -> things and pictures of a `Size`."""


@dataclass(frozen=True)
class Cost:
    """Pictures drawn, and gradients of one sampling step for one picture, for one thing."""

    pictures: int
    gradients: int = 0

    @property
    def total(self) -> int:
        """Of both, for a progress bar."""
        return self.pictures + self.gradients


@dataclass(frozen=True)
class Shot:
    """The pictures that an attack got at one budget."""

    budget: float
    images: Sequence[Image.Image]
    note: str = ""
    """What was found, where that can be read: a prompt."""


class Attack(ABC):
    """One attack; a subclass for each, listed in the registry.

    Attributes:
        name: On the command line.
        kind: What the attacker may touch.
        summary: What is done, in a few words.
        unit: What the budget counts.
        in_training: Whether the training of masks uses this kind of attack; its figures then say less.
        levels: The levels at which it runs without being asked for by name.
        needs_neutral: The attacker has pictures of harmless things.
        needs_base: The attacker has the unguarded weights.
        is_shared: It asks for nothing in particular: it runs once, and any of the things counts.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    summary: ClassVar[str]
    unit: ClassVar[str]
    in_training: ClassVar[bool] = False
    is_shared: ClassVar[bool] = False
    levels: ClassVar[tuple[Level, ...]] = ("quick", "full")
    needs_neutral: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False

    @abstractmethod
    def budgets(self, level: Level) -> tuple[float, ...]:
        """The budgets at which pictures are drawn, growing."""

    def cost(self, size: Size) -> Cost:
        """For one thing."""
        return Cost(len(self.budgets(size.level)) * size.pictures)

    def num_pictures(self, size: Size) -> int:
        """Pictures of the thing that the attacker has."""
        return 0

    def refusal(self, pipe: Any) -> str | None:
        """Why this pipeline cannot be attacked so; None where it can."""
        return None

    @abstractmethod
    def run(self, victim: Victim, thing: Thing, size: Size) -> Iterator[Shot]:
        """Attack, and yield pictures for each of `budgets`. The victim is left as it was."""

    def seeds(self, thing: Thing, size: Size, part: Part = Part.JUDGE) -> list[int]:
        """The noises of all pictures of one budget: the same for each victim and budget, so that they are paired."""
        place = (size.seed << 32 | crc32(f"{self.name}/{thing.name}".encode())) << _SEED_BITS
        return [FIRST_SEED[part] + place + k for k in range(size.pictures)]

    def templates(self, victim: Victim, thing: Thing, size: Size) -> list[str]:
        """One template for each picture of a budget; none of them serves the attacker's own search."""
        half = templates_of(victim.phrases, Part.JUDGE)
        return [half[int(k)] for k in self.rng(thing, size).integers(len(half), size=size.pictures)]

    def named(self, victim: Victim, thing: Thing, size: Size) -> list[str]:
        """The thing by its name in each of `templates`."""
        return [template.format(thing.words[0]) for template in self.templates(victim, thing, size)]

    def unnamed(self, victim: Victim, thing: Thing, size: Size) -> list[str]:
        """What `named` is set against: the empty prompt, and a neutral thing in the same template, in turn."""
        neutral = victim.phrases.neutral
        words = [neutral[int(k)] for k in self.rng(thing, size).integers(len(neutral), size=size.pictures)]
        both = zip(self.templates(victim, thing, size), words, strict=True)
        return [template.format(word) if k % 2 else "" for k, (template, word) in enumerate(both)]

    def rng(self, thing: Thing, size: Size, part: Part = Part.JUDGE) -> np.random.Generator:
        """For prompts and choices; the same for each victim."""
        return np.random.default_rng((size.seed, crc32(f"{self.name}/{thing.name}/{part}".encode())))


def templates_of(phrases: Phrases, part: Part) -> tuple[str, ...]:
    """The half of the templates that is for this part. A single template serves both."""
    half = phrases.templates[part is Part.JUDGE :: 2]
    return half or phrases.templates
