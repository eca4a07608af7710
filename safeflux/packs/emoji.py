"""The vocabulary of the embedded model as packs, one for each of its targets."""

from collections.abc import Sequence

from safeflux.errors import ConfigError
from safeflux.packs.schema import Pack, PackConcept
from safeflux.policy.validate import suggest
from safeflux.reference.vocabulary import NOTHING_WORD, Concept, Target, vocabulary, with_article

EMOJI = "emoji"
"""What the names of these packs begin with: `emoji:weapons`."""

# Things that look or are used most like an erased concept, by category: they are the first to be spoilt.
NEIGHBOURS: dict[str, dict[str, str]] = {
    "weapons": {
        "scissors": "blades in a hand, as knives and daggers are",
        "hammer": "a head on a shaft, swung by hand",
        "rocket": "explodes and flies, as bombs and arrows do",
        "fire": "what a bomb's fuse ends in",
    },
    "alcohol": {
        "hot-beverage": "a drink in a cup",
        "trophy": "the outline of a goblet",
        "pineapple": "garnish and colour of a tropical drink",
        "grapes": "what wine is named and coloured by",
    },
    "tobacco": {
        "candle": "a white stick that burns at its end",
        "pencil": "a thin slanted stick with a tip of another colour",
        "fire": "glow and smoke",
    },
    "drugs": {
        "pencil": "a thin slanted tool with a point, as a syringe is",
        "hot-pepper": "a small rounded thing of one strong colour, as a pill is",
        "balloon": "the rounded, two-toned gloss of a capsule",
    },
    "gambling": {
        "crown": "the joker's and the cards' ornament",
        "gem-stone": "a prize with facets, as a die has faces",
        "trophy": "what is won",
        "red-heart": "a card's suit",
    },
    "horror": {
        "alien": "a pale face with hollow eyes, as a skull has",
        "robot": "a face that is no animal's",
        "snowman": "a white figure that stands, as a ghost does",
        "crab": "many legs, as a spider has",
    },
    "character": {
        "mouse": "a small long-eared rodent's face",
        "koala": "round ears on a gray face",
        "cat": "a pet's face with upright ears",
        "fox": "a face with upright ears",
    },
}


def emoji_packs() -> list[str]:
    """The categories and styles that there are packs of."""
    return list(vocabulary().targets)


def emoji_pack(name: str) -> Pack:
    """The pack of a category or style of the embedded model.

    Raises:
        ConfigError: It has none of that name.
    """
    if name not in vocabulary().targets:
        message = f"pack '{EMOJI}:{name}': emoji-flux has no such category{suggest(name, emoji_packs())}"
        raise ConfigError(message) from FileNotFoundError(name)
    return pack_of(vocabulary().targets[name])


def pack_of(target: Target) -> Pack:
    """The pack of a target of the vocabulary."""
    if target.style:
        style = {target.style: PackConcept(words=(target.style,))}
        return _pack(target, style, anchor=target.instead or NOTHING_WORD)
    concepts = {
        concept.name: PackConcept(words=words_of([concept]), held_out=tuple(map(with_article, concept.held_out)))
        for concept in target.concepts
    }
    neighbours = tuple(with_article(vocabulary()[name].words) for name in NEIGHBOURS.get(target.name, ()))
    return _pack(target, concepts, neighbours=neighbours)


def words_of(concepts: Sequence[Concept]) -> tuple[str, ...]:
    """All words for some concepts but the held-out ones, with their articles."""
    return tuple(with_article(word) for c in concepts for word in (c.words, *c.synonyms))


def _pack(
    target: Target, concepts: dict[str, PackConcept], *, anchor: str = NOTHING_WORD, neighbours: tuple[str, ...] = ()
) -> Pack:
    return Pack(
        apiVersion="safeflux/v1",
        kind="Pack",
        name=target.name,
        target=target.kind,
        concepts=concepts,
        anchor=anchor,
        neighbours=neighbours,
    )
