"""Concept ablation (arXiv 2303.13516): v(x, c) is trained towards the model's own v(x, a) of the anchor a, held fixed.

x are noised pictures of the anchor; the usual loss on the anchor's pictures and on others to preserve stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import torch
import torch.nn.functional as F

from benchmarks.peers.material import Material
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.tuning import fine_tuned
from safeflux.reference.vocabulary import Target


def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """Fine-tune a copy."""
    batches = cycle(zip(material.erased(targets, "anchor"), material.kept(targets), strict=True))

    def loss(model: torch.nn.Module) -> torch.Tensor:
        erased, kept = next(batches)
        at, elsewhere = material.noised(erased.x0), material.noised(kept.x0)
        with torch.no_grad():
            goal = material.velocity(model, at, erased.anchor)
            before = material.velocity(material.pipe.transformer, elsewhere, kept.prompt)
        ablated = F.mse_loss(material.velocity(model, at, erased.prompt), goal)
        return ablated + settings["preserve"] * F.mse_loss(material.velocity(model, elsewhere, kept.prompt), before)

    return fine_tuned(material, settings, loss)


METHOD = Method(
    paper="arXiv 2303.13516",
    carried="velocities in the place of noise; to preserve, the base model's velocities in the place of the noise "
    "itself, on the prompts that mask training preserves",
    grid=[
        {"where": where, "preserve": preserve, "lr": lr, "steps": 150}
        for where, preserve, lr in (
            ("text", 1.0, 1e-4),
            ("text", 1.0, 1e-3),
            ("text", 3.0, 3e-4),
            ("all", 1.0, 3e-5),
            ("all", 1.0, 1e-4),
            ("all", 3.0, 1e-4),
        )
    ],
    make=make,
)
