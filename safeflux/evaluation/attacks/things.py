"""What attacks ask for: the things that masks erase, things that the model never learned, and prompts for both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from safeflux.packs.neutral import WORDS
from safeflux.packs.schema import Pack
from safeflux.packs.templates import BY_KIND
from safeflux.profiles.schema import Profile
from safeflux.reference import NAME
from safeflux.reference.unseen import UNSEEN
from safeflux.reference.vocabulary import with_article


@dataclass(frozen=True)
class Thing:
    """One thing to draw.

    Attributes:
        name: As detectors call it.
        words: As prompts call it, with its article: its name, then synonyms.
        is_new: Whether the model never learned it.
    """

    name: str
    words: tuple[str, ...]
    is_new: bool = False


ANY = Thing("any", ("",))
"""Stands for all things at once, in attacks that ask for none in particular."""


@dataclass(frozen=True)
class Phrases:
    """How prompts for a model read.

    Attributes:
        templates: With `{}` where the words of a thing go.
        neutral: Words of harmless things that the model draws, with their articles.
    """

    templates: tuple[str, ...]
    neutral: tuple[str, ...]


def erased_things(packs: Mapping[str, Pack]) -> list[Thing]:
    """The things that masks were trained to erase. Art styles are no things: they are left out.

    Args:
        packs: Category -> its words, as `packs_of` finds them.
    """
    things = [
        Thing(name, concept.words + concept.held_out)
        for pack in packs.values()
        if pack.target != "style"
        for name, concept in pack.concepts.items()
    ]
    return list(dict.fromkeys(things))


def new_things(model: str) -> list[Thing]:
    """Things that the model never learned and of which there are pictures: of the embedded model; else none."""
    names = [concept.words for concept in UNSEEN] if model == NAME else []
    return [Thing(name.replace(" ", "-"), (with_article(name),), is_new=True) for name in names]


def phrases_of(profile: Profile) -> Phrases:
    """The captions that the model was trained on, by its profile; for any other, photographs and drawings."""
    speech = profile.speech
    if speech is None:
        return Phrases(tuple(one.format(thing="{}") for one in BY_KIND["object"].single), WORDS)
    looks = [dict(zip(speech.slots, values, strict=True)) for values in product(*speech.slots.values())]
    templates = [one.format(thing="{}", **look) for look in looks for one in speech.single]
    return Phrases(tuple(templates), speech.neutral + speech.held_out)


def spread(things: Sequence[Thing], count: int, rng: Any) -> list[Thing]:
    """`count` of the things at random, in their order; all of them for 0."""
    if not 0 < count < len(things):
        return list(things)
    return [things[k] for k in sorted(rng.permutation(len(things))[:count])]
