"""ANT (arXiv 2504.12782): the condition turned round in later steps, early steps as they were, few weights.

The loss is later + a early. With v_0 of the base model and x on the way by the concept's prompt c, `later` is
|v(x, c) - goal|^2 + b |v(x, 0) - v_0(x, 0)|^2 in later steps, the goal v_0(x, 0) - eta (v_0(x, c) - v_0(x, 0)); `early`
is the same in early steps, the goal v_0(x, c). Only weights are tuned whose gradient is among the largest in every one
of several maps, each of other prompts and noises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from benchmarks.peers.material import Material
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.tuning import copied_for, in_place_of, tune
from safeflux.reference.vocabulary import Target

COMMON = {"eta": 1.0, "early": 1.0, "empty": 0.5, "maps": 4}
"""Of all trials, as in the paper; it has more maps."""
Loss = Callable[[], torch.Tensor]


def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """Find the weights, and tune them in a copy."""
    model, parameters = copied_for(material, settings["where"])
    early, later = _losses(material, model, targets, settings)
    salient = intersected(parameters, later, settings["maps"], settings["share"])
    handles = [p.register_hook(lambda grad, on=on: grad * on) for p, on in zip(parameters, salient, strict=True)]
    tune(parameters, lambda: later() + settings["early"] * early(), settings["steps"], settings["lr"])
    for handle in handles:
        handle.remove()
    return in_place_of(model, [p[on] for p, on in zip(parameters, salient, strict=True)])


def _losses(
    material: Material, model: torch.nn.Module, targets: Sequence[Target], settings: Settings
) -> tuple[Loss, Loss]:
    """Of early and of later steps."""
    source, base, empty = material.source(targets), material.pipe.transformer, material.encode([""] * material.size)

    def loss(is_early: bool) -> torch.Tensor:
        condition = material.encode([pair.prompt for pair in material.pairs(source, targets)])
        at = material.on_the_way(model, condition, (0.0, settings["turn"]) if is_early else (settings["turn"], 1.0))
        with torch.no_grad():
            named, nothing = (material.velocity(base, at, each) for each in (condition, empty))
            goal = named if is_early else nothing - settings["eta"] * (named - nothing)
        steered = F.mse_loss(material.velocity(model, at, condition), goal)
        return steered + settings["empty"] * F.mse_loss(material.velocity(model, at, empty), nothing)

    return lambda: loss(True), lambda: loss(False)


def intersected(parameters: Sequence[torch.Tensor], loss: Loss, maps: int, share: float) -> list[torch.Tensor]:
    """Where the loss's gradient is among the largest `share` of all, each time; bool, in the parameters' shapes."""
    found = [torch.ones_like(parameter, dtype=torch.bool) for parameter in parameters]
    for _ in range(maps):
        sizes = [grad.abs() for grad in torch.autograd.grad(loss(), parameters)]
        every = torch.cat([size.flatten() for size in sizes])
        least = every.kthvalue(max(1, round((1 - share) * len(every)))).values
        found = [before & (size > least) for before, size in zip(found, sizes, strict=True)]
    return found


METHOD = Method(
    paper="arXiv 2504.12782",
    carried="velocities in the place of noise; `turn` is the share of the sampler's steps that stay as they were; "
    "much less than the paper's is tried too, since this model decides in its first steps what it draws. Uncertain: of "
    "which loss the maps are; that of later steps is taken",
    grid=[
        {"where": where, "turn": turn, **COMMON, "share": share, "lr": lr, "steps": 100}
        for where, turn, share, lr in (
            ("all", 0.125, 0.5, 1e-4),
            ("all", 0.25, 0.5, 1e-4),
            ("all", 0.125, 0.5, 3e-4),
            ("text", 0.125, 0.5, 1e-3),
            ("text", 0.25, 0.9, 1e-3),
            ("all", 0.125, 0.9, 1e-4),
        )
    ],
    make=make,
)
