"""A list of words: a prompt that has one of them gets a grey picture, and nothing is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from PIL import Image

from benchmarks.peers.material import Material
from benchmarks.peers.method import Made, Method, Settings
from safeflux.reference.model import EMOJI_FLUX_CALL
from safeflux.reference.vocabulary import Target


class Listed:
    """A pipeline behind a list of words."""

    def __init__(self, pipe: Any, words: re.Pattern[str]) -> None:
        self._pipe, self._words = pipe, words

    def __call__(self, *, prompt: list[str], generator: list[Any], **call: Any) -> FluxPipelineOutput:
        """Draw the prompts that have none of the words."""
        size = (EMOJI_FLUX_CALL["width"], EMOJI_FLUX_CALL["height"])
        images = [Image.new("RGB", size, "gray") for _ in prompt]
        free = [k for k, text in enumerate(prompt) if not self._words.search(text)]
        if free:
            generators = [generator[k] for k in free]
            drawn = self._pipe(prompt=[prompt[k] for k in free], generator=generators, **call).images
            for k, image in zip(free, drawn, strict=True):
                images[k] = image
        return FluxPipelineOutput(images)


def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """The words for the targets' concepts that mask training sees; for a style, its name."""
    words = [
        word
        for target in targets
        for word in ([target.style] if target.style else [w for c in target.concepts for w in (c.words, *c.synonyms)])
    ]
    return _made(words)


def combine(material: Material, parts: Sequence[Made], settings: Settings) -> Made:
    """One list."""
    return _made([word for part in parts for word in part.state])


def _made(words: Sequence[str]) -> Made:
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.IGNORECASE)

    @contextmanager
    def drawing(pipe: Any) -> Iterator[Any]:
        yield Listed(pipe, pattern)

    return Made(drawing, sum(len(word) + 1 for word in words), list(words))


METHOD = Method(
    paper="common practice",
    carried="nothing; there is nothing to tune",
    grid=[{}],
    make=make,
    combine=combine,
)
