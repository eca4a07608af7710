"""Safe latent diffusion (arXiv 2211.05105): each step is steered away from what the concept's words would add.

v = v_p - mu (v_S - v_0) - m nu, with mu = min(1, s |v_p - v_S|) where v_p - v_S < t and 0 elsewhere, and the momentum
nu <- b nu + (1 - b) mu (v_S - v_0), from a step on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.peers.material import Material, replaced
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.wrapped import Wrapped
from safeflux.packs.emoji import words_of
from safeflux.reference.vocabulary import Target

_MOMENTUM_DECAY = 0.4


class Steered(Wrapped):
    """The transformer, steered away from some texts, each by itself.

    Args:
        transformer: The model's.
        sigmas: Of the sampler.
        tokens: The empty prompt and the conditions, encoded, (1 + K, 1, L, D).
        pooled: Likewise, (1 + K, 1, P).
        settings: `threshold` t, `scale` s, `momentum` m, `warm_up` in steps.
    """

    def __init__(
        self,
        transformer: Any,
        sigmas: torch.Tensor,
        tokens: torch.Tensor,
        pooled: torch.Tensor,
        settings: Settings,
    ) -> None:
        super().__init__(transformer, sigmas)
        self._tokens, self._pooled, self._settings = tokens, pooled, settings
        self._nu, self._last = torch.zeros(()), -1

    def forward(self, **inputs: Any) -> tuple[torch.Tensor]:
        """The steered velocity."""
        step = self.step_of(inputs)
        if step <= self._last:  # a new picture
            self._nu = torch.zeros(())
        self._last = step
        prompt = self.own(**inputs)[0]
        empty, *concepts = (
            self._under(inputs, tokens, pooled) for tokens, pooled in zip(self._tokens, self._pooled, strict=True)
        )
        t, s = self._settings["threshold"], self._settings["scale"]
        steer = torch.zeros_like(prompt)
        for concept in concepts:
            difference = prompt - concept
            steer = steer + torch.where(difference < t, (s * difference.abs()).clamp(max=1), 0) * (concept - empty)
        whole = steer + self._settings["momentum"] * self._nu
        self._nu = (_MOMENTUM_DECAY * self._nu + (1 - _MOMENTUM_DECAY) * steer).detach()
        return (prompt - whole if step >= self._settings["warm_up"] else prompt,)

    def _under(self, inputs: dict[str, Any], tokens: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        count = len(inputs["hidden_states"])
        found: torch.Tensor = self.own(
            **{
                **inputs,
                "encoder_hidden_states": tokens.expand(count, -1, -1),
                "pooled_projections": pooled.expand(count, -1),
            }
        )[0]
        return found


def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """One condition a target, from all its words."""
    return _made(material, [words_of(target.concepts) for target in targets], settings)


def combine(material: Material, parts: Sequence[Made], settings: Settings) -> Made:
    """A steering for each target."""
    return _made(material, [words for part in parts for words in part.state], settings)


def _made(material: Material, texts: list[tuple[str, ...]], settings: Settings) -> Made:
    conditions = [material.mean(words) for words in ([""], *texts)]
    tokens, pooled = (torch.stack(each) for each in zip(*conditions, strict=True))

    @contextmanager
    def drawing(pipe: Any) -> Iterator[Any]:
        with replaced(pipe, Steered(pipe.transformer, material.sampler.sigmas, tokens, pooled, settings)):
            yield pipe

    return Made(drawing, sum(len(word.encode()) for words in texts for word in words), texts)


METHOD = Method(
    paper="arXiv 2211.05105",
    carried="velocities in the place of noise, no guidance to add to; a steering a target, by the mean of its encoded "
    "words, since one text of 20 tokens does not hold them: 2 + K model calls a step for K targets",
    grid=[
        {"threshold": threshold, "scale": scale, "momentum": 0.3, "warm_up": warm_up}
        for threshold, scale, warm_up in (
            (0.01, 0.5, 0),
            (0.05, 2.0, 0),
            (0.2, 5.0, 0),
            (1.0, 5.0, 0),
            (1.0, 5.0, 1),
            (10.0, 50.0, 0),
        )
    ],
    make=make,
    combine=combine,
    undo="taken off",
    is_outside=True,
)
