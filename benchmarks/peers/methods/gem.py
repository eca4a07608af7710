"""GEM (arXiv 2606.00140): a triplet of velocities, near the anchor's and far from the target's own.

With v of the model under training and v_0 of the base model, at points x on the way that the former takes from noise by
the target's prompt c: max(0, |v(x, c) - v_0(x, a)| - eta |v(x, c) - v_0(x, c)|), for the anchor a.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.peers.material import Material
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.adapters import Adapter, layers_of
from benchmarks.peers.methods.tuning import tune
from safeflux.reference.vocabulary import Target

QUERIES_AND_KEYS = ("to_q", "to_k", "add_q_proj", "add_k_proj")


def triplet(ours: torch.Tensor, anchor: torch.Tensor, target: torch.Tensor, eta: float) -> torch.Tensor:
    """The hinge on velocities (B, N, C), averaged; its two distances are of whole velocities."""
    near, far = ((ours - each).flatten(1).norm(dim=1) for each in (anchor, target))
    return (near - eta * far).relu().mean()


def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """Train an adapter on queries and keys of the blocks of two streams."""
    base = material.pipe.transformer
    adapter = Adapter.new(base, layers_of(base, "transformer_blocks", QUERIES_AND_KEYS), settings["rank"])
    source = material.source(targets)

    def loss() -> torch.Tensor:
        pairs = material.pairs(source, targets)
        prompt, anchor = (material.encode([getattr(p, part) for p in pairs]) for part in ("prompt", "anchor"))
        with torch.no_grad(), adapter.on(base):
            at = material.on_the_way(base, prompt, (0.0, settings["until"]))
        with torch.no_grad():
            harmless, own = (material.velocity(base, at, each) for each in (anchor, prompt))
        with adapter.on(base):
            return triplet(material.velocity(base, at, prompt), harmless, own, settings["eta"])

    tune(adapter.parameters, loss, settings["steps"], settings["lr"])
    return adapter.merged(material)


METHOD = Method(
    paper="arXiv 2606.00140",
    carried="made for FLUX; a step takes one point of the way for each of 16 prompts, in the place of all early points "
    "of one; the paper's weight of 100 is left out, since Adam's steps do not depend on it; targets that are erased "
    "together are trained together. Uncertain: the paper's rank",
    grid=[
        {"rank": 16, "eta": eta, "until": until, "lr": lr, "steps": 100}
        for eta, until, lr in (
            (1.0, 0.375, 3e-4),
            (1.0, 0.375, 1e-3),
            (1.0, 1.0, 3e-4),
            (1.0, 1.0, 1e-3),
            (0.5, 0.375, 3e-4),
            (0.0, 1.0, 3e-4),
        )
    ],
    make=make,
)
