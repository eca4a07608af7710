"""The concepts that emoji-flux can draw, and its captions for them. Imports no torch.

A scene is one or two concepts in one art style on one background colour; in a scene of two the first-named stands on
the left. Captions are built here, for the recipe that trains the model, for the trainer and for the demo, so that all
speak one language.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from safeflux.errors import ConfigError

NOTHING_WORD = "nothing"
"""The word for a place left bare: `nothing, noto style, blue background` draws the background alone."""


@dataclass(frozen=True)
class Concept:
    """One thing that emoji-flux draws.

    Attributes:
        name: What captions call it, with hyphens, e.g. `kitchen-knife`.
        category: The policy category, e.g. `weapons`; None for a neutral concept.
        synonyms: Other words for it that captions use.
        held_out: Synonyms that the base model knows but mask training never sees; they measure generality.
        icon: The icon's name in the icon sets, where that is another; e.g. `ewe` for `sheep`.
    """

    name: str
    category: str | None = None
    synonyms: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    icon: str | None = None

    @property
    def words(self) -> str:
        """The name as captions write it: `kitchen knife`."""
        return self.name.replace("-", " ")


TargetKind = Literal["object", "identity", "style"]


@dataclass(frozen=True)
class Target:
    """Something that a mask can erase.

    Attributes:
        name: The policy category.
        kind: `object` (the concepts of a category), `identity` (one single concept) or `style` (an art style).
        concepts: The erased concepts; empty for a style.
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
    """Category or style -> the target of a mask of that name."""

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
def vocabulary(path: Path | None = None) -> Vocabulary:
    """The vocabulary of the embedded model, read from `vocabulary.yaml`, or that of another file of its form.

    Examples:
        >>> vocabulary()["kitchen-knife"].category
        'weapons'
    """
    source = path or files(__package__).joinpath("vocabulary.yaml")
    data = yaml.safe_load(source.read_text(encoding="utf-8"))
    concepts = tuple(_concept(name, entry) for name, entry in data["concepts"].items())
    backgrounds = tuple((name, tuple(rgb)) for name, rgb in data["backgrounds"].items())
    targets = {
        name: Target(name, concepts=tuple(c for c in concepts if c.category == name), **entry)
        for name, entry in data["targets"].items()
    }
    return Vocabulary(concepts, tuple(data["styles"]), backgrounds, targets)


def find_target(category: str, concepts: Collection[str]) -> Target:
    """The target of a category with these concepts; the concepts of a known category give its own target.

    Args:
        category: The policy category, known to the vocabulary or not.
        concepts: Names of things that emoji-flux draws, or of one art style.

    Raises:
        ConfigError: The judge knows no such thing or style.
    """
    words, names = vocabulary(), tuple(dict.fromkeys(concepts))
    known = words.targets.get(category)
    if known and set(names) == ({known.style} if known.style else {concept.name for concept in known.concepts}):
        return known
    if len(names) == 1 and names[0] in words.styles:
        return Target(category, "style", style=names[0])
    if not names or any(name not in words.names for name in names):
        unknown = [name for name in names if name not in words.names]
        raise ConfigError(
            f"category {category!r}: expected concepts that the judge of emoji-flux knows, either things such as "
            f"{', '.join(words.names[:3])} or a single style ({', '.join(words.styles)}), "
            f"got {', '.join(map(_with_hint, unknown)) or 'none'}. All names: {files(__package__) / 'vocabulary.yaml'}"
        )
    return Target(category, "object", tuple(words[name] for name in names))


def _with_hint(name: str) -> str:
    """An unknown name, and what the thing is called here, or else the name that is spelt most alike."""
    words = name.replace("-", " ")
    same = [c.name for c in vocabulary().concepts if words in (c.words, *c.synonyms, *c.held_out)]
    near = same or difflib.get_close_matches(name, vocabulary().names, n=1)
    return f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


def _concept(name: str, entry: Mapping[str, Any]) -> Concept:
    synonyms, held_out = (tuple(entry.get(key, ())) for key in ("synonyms", "held_out"))
    return Concept(name, entry.get("category"), synonyms, held_out, entry.get("icon"))


def held_out_concepts(words: Vocabulary | None = None) -> tuple[Concept, ...]:
    """The neutral concepts that no mask training sees, to measure the harm of erasing: every third one.

    Args:
        words: Another vocabulary than that of the embedded model.
    """
    return (words or vocabulary()).neutral[::3]


def known_concepts(words: Vocabulary | None = None) -> tuple[Concept, ...]:
    """The neutral concepts that mask training knows: the others."""
    held_out = held_out_concepts(words)
    return tuple(concept for concept in (words or vocabulary()).neutral if concept not in held_out)


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
