"""SAFREE (arXiv 2410.12761): tokens that belong to a concept are projected out of its subspace, nothing is trained.

With P_C the projection onto the span of the concepts' words, p_-i the prompt without token i and d_i the length of
(I - P_C) p_-i, a token belongs to a concept if d_i > (1 + alpha) mean_{j != i} d_j. It becomes P_I (I - P_C) p_i, with
P_I the projection onto the span of all p_-i. The prompt changed so is used in the first t' steps, and the prompt itself
in later ones; t' = gamma sigmoid(1 - cos(p, p')) for the prompt p' with all of its tokens projected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.peers.material import Material, replaced
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.wrapped import Wrapped
from safeflux.packs.emoji import words_of
from safeflux.reference.vocabulary import Target, known_concepts


def onto(rows: torch.Tensor, rank: int | None = None) -> torch.Tensor:
    """The projection onto the span of rows (..., K, D), or onto their `rank` strongest directions; (..., D, D)."""
    _, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    kept = right * (sizes > 1e-5 * sizes[..., :1])[..., None]
    directions = kept[..., : rank or kept.shape[-2], :]
    return directions.mT @ directions


def belongs(tokens: torch.Tensor, away: torch.Tensor, alpha: float) -> torch.Tensor:
    """The tokens that belong to a concept, bool (B, L), for tokens (B, L, D) and the projection I - P_C."""
    distance = (without_each(tokens) @ away).norm(dim=-1)
    count = distance.shape[1]
    others = (distance.sum(1, keepdim=True) - distance) / (count - 1)
    return distance > (1 + alpha) * others


def without_each(tokens: torch.Tensor) -> torch.Tensor:
    """The prompt without each of its tokens in turn: means of the others, (B, L, D)."""
    return (tokens.sum(1, keepdim=True) - tokens) / (tokens.shape[1] - 1)


class Projected(Wrapped):
    """The transformer, whose prompts lose a concept.

    Args:
        transformer: The model's.
        sigmas: Of the sampler.
        tokens: P_C of tokens, (D, D).
        pooled: P_C of pooled vectors, (P, P).
        settings: `alpha`, and `gamma` in steps.
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
        self._away = tuple(torch.eye(len(each)) - each for each in (tokens, pooled))
        self._settings = settings

    def forward(self, **inputs: Any) -> Any:
        """The transformer's, for other prompts in the first steps."""
        tokens, pooled = inputs["encoder_hidden_states"], inputs["pooled_projections"]
        safe, safe_pooled, steps = self.changed(tokens, pooled)
        is_on = self.step_of(inputs) < steps
        mine = {
            "encoder_hidden_states": torch.where(is_on[:, None, None], safe, tokens),
            "pooled_projections": torch.where(is_on[:, None], safe_pooled, pooled),
        }
        return self.own(**{**inputs, **mine})

    def changed(self, tokens: torch.Tensor, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompts without the concept, (B, L, D) and (B, P), and for how many steps they are used, (B,)."""
        away, away_pooled = self._away
        found = belongs(tokens, away, self._settings["alpha"])
        projected = tokens @ away @ onto(without_each(tokens))
        alike = F.cosine_similarity(tokens.flatten(1), projected.flatten(1))
        steps = (self._settings["gamma"] * torch.sigmoid(1 - alike)).round()
        safe = torch.where(found[..., None], projected, tokens)
        return safe, torch.where(found.any(1, keepdim=True), pooled @ away_pooled, pooled), steps


def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """The subspace of all words of the targets."""
    return _made(material, [words_of(target.concepts) for target in targets], settings)


def combine(material: Material, parts: Sequence[Made], settings: Settings) -> Made:
    """The subspace of all words of all parts."""
    return _made(material, [words for part in parts for words in part.state], settings)


def _made(material: Material, texts: list[tuple[str, ...]], settings: Settings) -> Made:
    spans = [_spans(material, words, settings) for words in texts]
    tokens, pooled = (onto(torch.cat(each)) for each in zip(*spans, strict=True))

    @contextmanager
    def drawing(pipe: Any) -> Iterator[Any]:
        with replaced(pipe, Projected(pipe.transformer, material.sampler.sigmas, tokens, pooled, settings)):
            yield pipe

    return Made(drawing, sum(len(word.encode()) for words in texts for word in words), texts)


def _spans(material: Material, words: Sequence[str], settings: Settings) -> tuple[torch.Tensor, ...]:
    """Directions (R, D) and (R, P) that span one target's words; less the mean of other things' if `centred`."""
    ours, others = (material.encode(some) for some in (words, words_of(known_concepts())))
    assert ours.pooled is not None
    assert others.pooled is not None
    pairs = ((ours.tokens.mean(1), others.tokens.mean(1)), (ours.pooled, others.pooled))
    rows = [mine - theirs.mean(0) * settings["centred"] for mine, theirs in pairs]
    return tuple(torch.linalg.svd(each, full_matrices=False).Vh[: settings["rank"]] for each in rows)


METHOD = Method(
    paper="arXiv 2410.12761",
    carried="the prompt without a token is the mean of its other tokens, as the transformer gets them, since T5 gives "
    "no vector for a masked prompt; padding is a token too, for it holds as much of the prompt; the pooled vector is "
    "projected with the tokens; a target's words are its strongest directions alone, since all of them fill this "
    "model's 128; the sampler has 8 steps, not 50. Re-attention, on a U-Net's skip connections, has no counterpart",
    grid=[
        {"alpha": alpha, "gamma": gamma, "rank": rank, "centred": centred}
        for alpha, gamma, rank, centred in (
            (0.01, 2.0, 2, False),
            (0.01, 16.0, 2, False),
            (0.0, 16.0, 2, True),
            (0.0, 16.0, 4, True),
            (-1.0, 16.0, 2, True),
            (-1.0, 8.0, 4, True),
        )
    ],
    make=make,
    combine=combine,
    undo="taken off",
    is_outside=True,
)
