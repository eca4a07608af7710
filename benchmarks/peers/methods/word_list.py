"""A list of words: a prompt that has one of them gets a grey picture, and nothing is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput

from benchmarks.peers.material import Material
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.calls import Asked, Behind, blocked
from safeflux.reference.vocabulary import Target


class Listed(Behind):
    """A pipeline behind a list of words."""

    def __init__(self, pipe: Any, words: re.Pattern[str]) -> None:
        super().__init__(pipe)
        self._words = words

    def __call__(self, **call: Any) -> FluxPipelineOutput:
        """Draw the prompts that have none of the words; those that are encoded already have none to be seen."""
        asked = Asked(self._pipe, call)
        free = [k for k, text in enumerate(asked.prompts) if not self._words.search(text)]
        if not asked.prompts or len(free) == asked.count:
            return FluxPipelineOutput(self._pipe(**call).images)
        images = [blocked() for _ in asked.prompts]
        if free:
            some = {"prompt": [asked.prompts[k] for k in free], "generator": [call["generator"][k] for k in free]}
            for k, image in zip(free, self._pipe(**{**call, **some}).images, strict=True):
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
    undo="taken off",
    is_outside=True,
)
