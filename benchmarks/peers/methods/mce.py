"""Minimalist concept erasure (arXiv 2507.13386) as published: neurons' masks, learned as hard-concrete gates.

With F the whole sampler, F' the base model's and z gates, the loss |F_z(x_T, c) - F'(x_T, 0)|^2 + b |F_z(x_T, k) -
F'(x_T, k)|^2 for prompts c of the concept and k to preserve. Gates are on the hidden neurons of both feed-forwards of
the blocks of two streams, and on the outputs of the text's modulation there; those above zero stay on.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from safeflux.trainer.methods.gates import draw_gates
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.gating import GatedModel
from safeflux.trainer.sampling.rollout import Condition, rollout, sampler_of

from benchmarks.peers.material import Material, copied
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.masks import combine, written
from safeflux.families.sites import find_sites
from safeflux.reference.model import EMOJI_FLUX_CALL
from safeflux.reference.vocabulary import Target

BATCH, STEPS, START = 4, 5, 3.0
"""Prompts of a step and steps of the sampler, as in the published code, and where all gates begin."""
KINDS = ("ff", "norm")


def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """Learn the gates by Adam."""
    call, model = EMOJI_FLUX_CALL, copied(material.pipe)
    sampler = sampler_of(material.pipe, steps=STEPS, height=call["height"], width=call["width"])
    bits = Bits({name: site for name, site in find_sites(model).items() if site.kind in KINDS})
    log_alpha = torch.full((bits.count,), START, requires_grad=True)
    adam = torch.optim.Adam([log_alpha], lr=settings["lr"], weight_decay=1e-2)
    source, gated, empty = material.source(targets), GatedModel(model, bits), material.encode([""] * BATCH)

    def term(noise: torch.Tensor, ours: Condition, theirs: Condition) -> None:
        with torch.no_grad():
            goal = rollout(model, sampler, noise, theirs)
        with gated.under(gates) as under:
            found.append(under.gradient((rollout(model, sampler, noise, ours) - goal).square().mean()))

    for _ in range(settings["steps"]):
        gates, found = draw_gates(log_alpha, material.noise), list[torch.Tensor]()
        erased = material.encode([pair.prompt for pair in material.pairs(source, targets, BATCH)])
        kept = material.encode([pair.prompt for pair in source.preserve(material.rng, BATCH)])
        for ours, theirs in ((erased, empty), (kept, kept)):
            term(torch.randn(BATCH, *sampler.shape, generator=material.noise), ours, theirs)
        adam.zero_grad()
        gates.backward(found[0] + settings["beta"] * found[1])
        adam.step()
    return written(bits.masks_of(log_alpha.detach() > 0), ceil(bits.count / 8))


METHOD = Method(
    paper="arXiv 2507.13386",
    carried="nothing: made for FLUX; one draw of gates serves a whole step, where the published code draws anew "
    "in each pass, so that its gradient is biased; the paper has 400 steps at a rate of 0.5, the code's own masks come "
    "from about 16 at 0.8. Larger weights of what is kept are tried too, since theirs spoil so small a model",
    grid=[
        {"beta": beta, "lr": lr, "steps": steps}
        for beta, lr, steps in (
            (0.01, 0.5, 60),
            (0.1, 0.8, 16),
            (1.0, 0.5, 60),
            (10.0, 0.5, 60),
            (10.0, 0.2, 60),
            (100.0, 0.2, 60),
        )
    ],
    make=make,
    combine=combine,
    undo="in place, with what was overwritten",
)
