"""Erased stable diffusion (arXiv 2303.07345): v(x, c) is trained towards v_0(x, 0) - eta (v_0(x, c) - v_0(x, 0)).

x is on the way that the model under training takes from noise, by the concept's prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from benchmarks.peers.material import Material
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.tuning import fine_tuned
from safeflux.reference.vocabulary import Target


def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """Fine-tune a copy."""
    source, base, empty = material.source(targets), material.pipe.transformer, material.encode([""] * material.size)

    def loss(model: torch.nn.Module) -> torch.Tensor:
        condition = material.encode([pair.prompt for pair in material.pairs(source, targets)])
        at = material.on_the_way(model, condition)
        with torch.no_grad():
            ours, nothing = (material.velocity(base, at, each) for each in (condition, empty))
            goal = nothing - settings["eta"] * (ours - nothing)
        return F.mse_loss(material.velocity(model, at, condition), goal)

    return fine_tuned(material, settings, loss)


METHOD = Method(
    paper="arXiv 2303.07345",
    carried="velocities in the place of noise; `text` are the layers by which text enters attention, in the place of "
    "cross-attention's",
    grid=[
        {"where": where, "eta": eta, "lr": lr, "steps": 200}
        for where, eta, lr in (
            ("text", 1.0, 1e-4),
            ("text", 1.0, 1e-3),
            ("text", 3.0, 1e-4),
            ("all", 1.0, 3e-5),
            ("all", 1.0, 1e-4),
            ("all", 3.0, 3e-5),
        )
    ],
    make=make,
)
