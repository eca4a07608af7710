"""The second detector as a judge: a CLIP of the same vocabulary, asked what a picture shows and in which style."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from safeflux.detectors.base import Scores, Wanted
from safeflux.detectors.zero_shot import ZeroShotDetector, open_zero_shot
from safeflux.reference.judge import Verdicts
from safeflux.reference.vocabulary import Vocabulary, caption, with_article


class SecondJudge:
    """Gives verdicts as the judge does, by the zero-shot detector that every model has.

    Args:
        folder: The CLIP, as `benchmarks.emoji_flux.clip` leaves it.
        words: The vocabulary.
    """

    def __init__(self, folder: Path, words: Vocabulary) -> None:
        self._words = words
        texts: tuple[Mapping[str, str], ...] = (
            {concept.name: with_article(concept.words) for concept in words.concepts},
            {style: caption([], style) for style in words.styles},
            {background: caption([], None, background) for background in words.background_names},
        )
        self._readers = [_reader(folder, text.items()) for text in texts]

    def __call__(self, images: Sequence[Image.Image]) -> Verdicts:
        """The verdicts on B pictures; a concept's logit is its log-odds among all concepts."""
        concepts, styles, backgrounds = (reader(images) for reader in self._readers)
        features: Scores = self._readers[0].features(images).astype("float32")
        return Verdicts(concepts, styles, backgrounds, features, self._words)


def _reader(folder: Path, texts: Iterable[tuple[str, str]]) -> ZeroShotDetector:
    wanted = Wanted(concepts={name: (text,) for name, text in texts}, templates=("{}",))
    return open_zero_shot(str(folder), wanted)
