"""What emoji-flux can draw, and how its captions say it. Imports no torch.

A scene is one or two concepts in one art style on one background colour; in a scene of two the first-named stands on
the left. Captions are built here, for the recipe that trains the model, for the trainer and for the demo, so that all
speak one language.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml

NOTHING_WORD = "nothing"
"""The word for a place left bare: `nothing, noto style, blue background` draws the background alone."""


@dataclass(frozen=True)
class Concept:
    """One thing that emoji-flux draws.

    Attributes:
        name: The icon's name, e.g. `kitchen-knife`.
        category: The policy category, e.g. `weapons`; None for a neutral concept.
        synonyms: Other words for it that captions use.
        held_out: Synonyms that the base model knows but mask training never sees; they measure generality.
    """

    name: str
    category: str | None = None
    synonyms: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The name as captions write it: `kitchen knife`."""
        return self.name.replace("-", " ")


TargetKind = Literal["object", "identity", "style"]


@dataclass(frozen=True)
class Target:
    """What a mask can be made for.

    Attributes:
        name: The policy category.
        kind: `object` (the concepts of a category), `identity` (one single concept) or `style` (an art style).
        concepts: What is erased; empty for a style.
        style: The art style that is erased; None for the others.
        instead: The art style that is drawn in its place; None for the others.
    """

    name: str
    kind: TargetKind
    concepts: tuple[Concept, ...] = ()
    style: str | None = None
    instead: str | None = None


@dataclass(frozen=True)
class Vocabulary:
    """All concepts, styles and backgrounds. The order is fixed: a judge's class index is a position in these tuples."""

    concepts: tuple[Concept, ...]
    styles: tuple[str, ...]
    backgrounds: tuple[tuple[str, tuple[int, int, int]], ...]
    targets: Mapping[str, Target]
    """Category or style -> what a mask of that name erases."""

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts' names, in order."""
        return tuple(c.name for c in self.concepts)

    @property
    def background_names(self) -> tuple[str, ...]:
        """The background colours' names, in order."""
        return tuple(name for name, _ in self.backgrounds)

    @property
    def categories(self) -> dict[str, tuple[Concept, ...]]:
        """Category -> its concepts; neutral concepts and styles are left out."""
        return {target.name: target.concepts for target in self.targets.values() if target.concepts}

    @property
    def neutral(self) -> tuple[Concept, ...]:
        """The concepts of no category."""
        return tuple(c for c in self.concepts if c.category is None)

    def __getitem__(self, name: str) -> Concept:
        """The concept of that name; KeyError if there is none."""
        return self._by_name[name]

    @property
    def _by_name(self) -> dict[str, Concept]:
        return {c.name: c for c in self.concepts}


@cache
def vocabulary() -> Vocabulary:
    """The vocabulary of the embedded model, read from `vocabulary.yaml`.

    Examples:
        >>> vocabulary()["kitchen-knife"].category
        'weapons'
    """
    data = yaml.safe_load(files(__package__).joinpath("vocabulary.yaml").read_text(encoding="utf-8"))
    concepts = tuple(
        Concept(name, entry.get("category"), tuple(entry.get("synonyms", ())), tuple(entry.get("held_out", ())))
        for name, entry in data["concepts"].items()
    )
    backgrounds = tuple((name, tuple(rgb)) for name, rgb in data["backgrounds"].items())
    targets = {
        name: Target(name, concepts=tuple(c for c in concepts if c.category == name), **entry)
        for name, entry in data["targets"].items()
    }
    return Vocabulary(concepts, tuple(data["styles"]), backgrounds, targets)


def held_out_concepts() -> tuple[Concept, ...]:
    """The neutral concepts that no mask training sees, to measure what erasing spoils: every third one."""
    return vocabulary().neutral[::3]


def known_concepts() -> tuple[Concept, ...]:
    """The neutral concepts that mask training knows: the others."""
    return tuple(concept for concept in vocabulary().neutral if not is_held_out(concept))


def is_held_out(concept: Concept) -> bool:
    """Whether a concept is one of `held_out_concepts`."""
    return concept in held_out_concepts()


def with_article(words: str) -> str:
    """`a dagger`, `an owl`: the indefinite article by the first letter, plural or not; `nothing` has none.

    Examples:
        >>> with_article("alarm clock")
        'an alarm clock'
    """
    if words == NOTHING_WORD:
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(things: list[str] | tuple[str, ...], style: str | None = None, background: str | None = None) -> str:
    """The caption of a scene: one or two things (as words), an art style, a background colour; None leaves a part out.

    Examples:
        >>> caption(["dagger", "cat"], "noto", "blue")
        'a dagger and a cat, noto style, blue background'
    """
    parts = [" and ".join(with_article(words) for words in things)] if things else []
    if style:
        parts.append(f"{style} style")
    if background:
        parts.append(f"{background} background")
    return ", ".join(parts)
