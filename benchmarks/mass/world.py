"""The model and its words: what masks are made for, and what neither masks nor their training ever touch.

A vocabulary is cut anew: each concept to erase is a category of its own. The rest is neutral; a third of it is held out
from mask training, as everywhere (`held_out_concepts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safeflux.cached import cached_property
from safeflux.errors import ConfigError
from safeflux.packs.emoji import pack_of
from safeflux.packs.schema import Pack
from safeflux.profiles.emoji import emoji_speech
from safeflux.profiles.load import load_profile
from safeflux.profiles.schema import Profile
from safeflux.reference import NAME
from safeflux.reference.judge import JUDGE, Judge
from safeflux.reference.model import load_pipeline, model_folder
from safeflux.reference.vocabulary import Concept, Target, Vocabulary, vocabulary

CONCEPTS_A_STYLE = 50
"""One of so many concepts is an art style."""
IDENTITIES = ("cat", "dog", "mouse", "rabbit", "fox", "panda", "koala", "lion", "cow", "pig")
"""Faces of animals stand for likenesses: an identity is one single concept."""


@dataclass(frozen=True)
class World:
    """A model that knows a vocabulary.

    Attributes:
        folder: The pipeline.
        judge_file: The judge that was trained on the vocabulary.
        words: The vocabulary, whose targets are the concepts to erase.
    """

    folder: Path
    judge_file: Path
    words: Vocabulary

    @classmethod
    def of(cls, model: str, vocabulary_path: Path | None, judge: Path | None, count: int) -> World:
        """The first `count` concepts of a vocabulary: its categories' first, then those with words to hold out.

        Raises:
            ConfigError: The vocabulary has too few concepts.
        """
        words = vocabulary(vocabulary_path)
        return cls(model_folder(model), judge or JUDGE, erasing(words, count))

    @property
    def names(self) -> tuple[str, ...]:
        """What there is a mask for."""
        return tuple(self.words.targets)

    @cached_property
    def profile(self) -> Profile:
        """That of the embedded model, with this model and its words."""
        known = load_profile(NAME)
        speech = emoji_speech(self.words).model_copy(update={"packs": ()})
        return known.model_copy(update={"model": str(self.folder), "detectors": (), "speech": speech})

    @cached_property
    def packs(self) -> Mapping[str, Pack]:
        """Each target in words."""
        return {name: pack_of(target) for name, target in self.words.targets.items()}

    def pipeline(self) -> Any:
        """The model, nothing masked."""
        return load_pipeline(self.folder)

    def judge(self) -> Judge:
        """Looks at its pictures."""
        return Judge(self.judge_file, self.words)


def erasing(words: Vocabulary, count: int) -> Vocabulary:
    """The vocabulary with `count` concepts to erase, each a target of its own, styles among them.

    Raises:
        ConfigError: Fewer than half as many concepts again would be left alone, too few to see what is spoilt.
    """
    styles = count // CONCEPTS_A_STYLE
    things = [concept.name for concept in _in_order(words.concepts)][: count - styles]
    if len(words.concepts) < 1.2 * count or styles > len(words.styles) // 2:
        raise ConfigError(
            f"expected a vocabulary of at least {round(1.2 * count)} concepts for {count} masks, got one of "
            f"{len(words.concepts)}; ask for fewer concepts, or name a larger vocabulary"
        )
    concepts = tuple(replace(c, category=c.name if c.name in things else None) for c in words.concepts)
    targets = [_thing(concept) for concept in concepts if concept.category]
    targets += [_style(*words.styles[2 * k : 2 * k + 2]) for k in range(styles)]
    return replace(words, concepts=concepts, targets={target.name: target for target in targets})


def _in_order(concepts: Sequence[Concept]) -> list[Concept]:
    return sorted(concepts, key=lambda concept: (concept.category is None, not concept.held_out))


def _thing(concept: Concept) -> Target:
    return Target(concept.name, "identity" if concept.name in IDENTITIES else "object", (concept,))


def _style(instead: str, style: str) -> Target:
    """Styles by twos: the second is erased, the first drawn in its place."""
    return Target(f"style-{style}", "style", style=style, instead=instead)
