"""The captions that the embedded model was trained on, from its vocabulary."""

from safeflux.packs.emoji import EMOJI, words_of
from safeflux.profiles.schema import Speech
from safeflux.reference.vocabulary import (
    Vocabulary,
    held_out_concepts,
    known_concepts,
    vocabulary,
    with_article,
)


def emoji_speech(words: Vocabulary | None = None) -> Speech:
    """One form of caption, the neutral concepts, and the categories that it draws beside them.

    Args:
        words: Another vocabulary than that of the embedded model, for a model of its kind.
    """
    words = words or vocabulary()
    return Speech(
        single=("{thing}, {style} style, {background} background",),
        pair=("{first} and {second}, {style} style, {background} background",),
        slots={"style": words.styles, "background": words.background_names},
        neutral=words_of(known_concepts(words)),
        held_out=words_of(held_out_concepts(words)),
        synonyms={
            with_article(concept.words): tuple(map(with_article, concept.synonyms))
            for concept in words.neutral
            if concept.synonyms
        },
        packs=tuple(f"{EMOJI}:{name}" for name in words.targets),
    )
