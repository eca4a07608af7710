"""A negative prompt with classifier-free guidance: v = v_n + s (v_p - v_n), at twice the cost of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.peers.material import Material
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.calls import Asked, called_with
from safeflux.packs.emoji import words_of
from safeflux.reference.vocabulary import Target


def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """One negative condition from the words of all targets."""
    return _made(material, [word for target in targets for word in words_of(target.concepts)], settings)


def combine(material: Material, parts: Sequence[Made], settings: Settings) -> Made:
    """One from the words of all parts."""
    return _made(material, [word for part in parts for word in part.state], settings)


def _made(material: Material, words: list[str], settings: Settings) -> Made:
    tokens, pooled = material.mean(words)

    def more(asked: Asked) -> dict[str, Any]:
        return {
            "negative_prompt_embeds": tokens.expand(asked.count, -1, -1),
            "negative_pooled_prompt_embeds": pooled.expand(asked.count, -1),
            "true_cfg_scale": settings["scale"],
        }

    return Made(called_with(more), sum(len(word.encode()) for word in words), words)


METHOD = Method(
    paper="arXiv 2207.12598, with the concept in the place of the empty prompt",
    carried="velocities in the place of noise; the model is not distilled, so its guidance is real; the mean of the "
    "encoded words in the place of one text, which 20 tokens would cut off",
    grid=[{"scale": scale} for scale in (1.25, 1.5, 2.0, 3.0, 5.0, 7.5)],
    make=make,
    combine=combine,
    undo="taken off",
    is_outside=True,
)
