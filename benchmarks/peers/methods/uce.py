"""Unified concept editing (arXiv 2308.14761): linear maps of the text, in closed form, read a concept as its anchor.

W' = (sum_i v_i c_i^T + p W sum_r c_r c_r^T + l W) (sum_i c_i c_i^T + p sum_r c_r c_r^T + l I)^-1 with v_i = W a_i, for
inputs c_i of the concept, a_i of its anchor, and c_r to preserve.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.peers.material import Material, copied
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.closed_form import Term, solve
from benchmarks.peers.methods.tuning import in_place_of
from safeflux.reference.vocabulary import Target

PROMPTS = 5
"""Of the targets, and to preserve, for each picture that other methods get."""


def edited(
    weight: torch.Tensor, ours: torch.Tensor, anchors: torch.Tensor, kept: torch.Tensor, settings: Settings
) -> torch.Tensor:
    """The map W' (O, I), from inputs (n, I)."""
    c, a, r = (each.double() for each in (ours, anchors, kept))
    share, ridge = len(c) / len(r) * settings["preserve"], settings["ridge"] * len(c)
    return solve(
        [
            Term(weight, a.T @ c, c.T @ c),
            Term.kept(weight, r.T @ r, share),
            Term.kept(weight, torch.eye(weight.shape[1]), ridge),
        ]
    )


@torch.no_grad()
def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """Edit the two maps through which text enters, the tokens' and the pooled vector's."""
    source, count = material.source(targets), PROMPTS * material.size * material.batches
    pairs = material.pairs(source, targets, count)
    kept = material.encode([pair.prompt for pair in source.preserve(material.rng, count)])
    ours, anchors = (material.encode([getattr(pair, part) for pair in pairs]) for part in ("prompt", "anchor"))
    model = copied(material.pipe)
    tokens, pooled = model.context_embedder, model.time_text_embed.text_embedder.linear_1
    for layer, part in ((tokens, "tokens"), (pooled, "pooled")):
        theirs, others, left = (getattr(each, part).flatten(0, -2) for each in (ours, anchors, kept))
        layer.weight.copy_(edited(layer.weight, theirs, others, left, settings))
    return in_place_of(model, (tokens.weight, pooled.weight))


METHOD = Method(
    paper="arXiv 2308.14761",
    carried="there are no keys and values of the text alone: the maps are those through which the text's tokens and "
    "the pooled vector enter the transformer; tokens of concept and anchor are matched by their places",
    grid=[
        {"preserve": preserve, "ridge": ridge}
        for preserve, ridge in ((1.0, 1e-3), (1.0, 1e-5), (0.1, 1e-3), (0.1, 1e-5), (10.0, 1e-5), (0.01, 1e-5))
    ],
    make=make,
)
