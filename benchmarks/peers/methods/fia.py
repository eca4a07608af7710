"""Forget-it-all (arXiv 2601.06163): single weights of the second feed-forward matrix, chosen without a gradient.

Of weight W_ij, in a step t of the sampler, the energy is U_tij = |W_ij| |X_tj| |cos(X_tj, Y_ti)| for the layer's inputs
X and outputs Y over all tokens. With mean and deviation over pictures of the concept (c) and of its anchor (b), the
saliency is S = max(0, mean_c - mean_b - deviation_b). A is half the mean of S over the steps and half the share of the
steps in which S is among the largest r_1 of its layer. A weight is chosen if A is among the largest r_2 both of its row
and of its layer. Of several targets' choices, those that at least alpha of the targets share stay on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safeflux.trainer.sampling.rollout import Condition

from benchmarks.peers.material import Material, Noised
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.looking import seen
from benchmarks.peers.methods.masks import written
from safeflux.masks.mask_set import MaskSet
from safeflux.reference.vocabulary import Target


class Layer(NamedTuple):
    """The site of a matrix, and the first of its columns that takes hidden neurons."""

    site: str
    first: int


Chosen = Mapping[str, torch.Tensor]
"""Site -> whether a weight is chosen, (O, I)."""
_PLACE_BYTES = 4


def energy(weight: torch.Tensor, given: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """U of each picture, (B, O, I), for inputs (B, N, I) and outputs (B, N, O) of a map (O, I)."""
    x, y = given.norm(dim=1), out.norm(dim=1)
    along = torch.einsum("bno,bni->boi", out, given).abs()
    return weight.abs() * x[:, None] * along / (x[:, None] * y[:, :, None] + 1e-8)


def saliency(concept: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    """S from energies (B, O, I) of both."""
    return (concept.mean(0) - anchor.mean(0) - anchor.std(0)).clamp(min=0)


def choose(saliencies: Sequence[torch.Tensor], temporal: float, spatial: float) -> torch.Tensor:
    """The weights that are chosen of a layer, (O, I), from S of each step."""
    often = torch.stack([_largest(each.flatten(), temporal).view_as(each).float() for each in saliencies]).mean(0)
    strong = torch.stack(list(saliencies)).mean(0)
    whole = 0.5 * strong / strong.amax().clamp(min=1e-12) + 0.5 * often
    return _largest(whole, spatial) & _largest(whole.flatten(), spatial).view_as(whole)


def _largest(values: torch.Tensor, share: float) -> torch.Tensor:
    """The largest of each row that are more than nothing; bool."""
    count = max(1, round(share * values.shape[-1]))
    top = torch.zeros_like(values, dtype=torch.bool).scatter_(-1, values.topk(count).indices, True)
    return top & (values > 0)


def fuse(parts: Sequence[Chosen], agnostic: float) -> Chosen:
    """What any of several targets chose, but not as many as `agnostic` of them."""
    counts = {name: sum(part[name].int() for part in parts) for name in parts[0]}
    most = ceil(agnostic * len(parts)) if len(parts) > 1 else 2
    return {name: (count > 0) & (count < most) for name, count in counts.items()}


@torch.no_grad()
def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """A choice a target, all of them fused."""
    return _made([_chosen(material, target, settings) for target in targets], settings)


def combine(material: Material, parts: Sequence[Made], settings: Settings) -> Made:
    """Fuse the choices."""
    return _made([one for part in parts for one in part.state], settings)


def _made(parts: Sequence[Chosen], settings: Settings) -> Made:
    off = fuse(parts, settings["agnostic"])
    masks = MaskSet({name: ~chosen for name, chosen in off.items() if chosen.any()})
    made = written(masks, _PLACE_BYTES * sum(int(chosen.sum()) for chosen in off.values()))
    return replace(made, state=list(parts))


def _chosen(material: Material, target: Target, settings: Settings) -> Chosen:
    base, source = material.pipe.transformer, material.source([target])
    layers = _layers(base, settings["where"])
    steps: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    pairs = material.pairs(source, [target], settings["pictures"])
    noise = torch.randn(len(pairs), *material.sampler.shape, generator=material.noise)
    runs = [
        _energies(material, layers, noise, material.encode([getattr(pair, part) for pair in pairs]))
        for part in ("prompt", "anchor")
    ]
    for concept, anchor in zip(*runs, strict=True):
        for name in layers:
            steps[name].append(saliency(concept[name], anchor[name]))
    found = {name: choose(each, settings["r1"], settings["r2"]) for name, each in steps.items()}
    return {layers[name].site: F.pad(chosen, (layers[name].first, 0)) for name, chosen in found.items()}


def _energies(
    material: Material, layers: Mapping[str, Layer], noise: torch.Tensor, condition: Condition
) -> Iterator[dict[str, torch.Tensor]]:
    """Step by step along the sampler: layer -> U."""
    base, x = material.pipe.transformer, noise
    for sigma, following in pairwise(material.sampler.sigmas):
        with seen(base, layers) as found:
            x = x + (following - sigma) * material.velocity(base, Noised(x, sigma.expand(len(x))), condition)
        yield {
            name: energy(
                base.get_submodule(name).weight[:, layer.first :], found[name][0][..., layer.first :], found[name][1]
            )
            for name, layer in layers.items()
        }


def _layers(model: Any, where: str) -> dict[str, Layer]:
    """Of the text's stream, of both streams, or of all blocks; single blocks have attention's columns first."""
    streams = {"ff_context": "weight"} | ({} if where == "text" else {"ff": "image"})
    found = {}
    for k in range(len(model.transformer_blocks)):
        names = {f"transformer_blocks.{k}.{stream}.net.2": kind for stream, kind in streams.items()}
        found |= {name: Layer(f"{name}:{kind}", 0) for name, kind in names.items()}
    for k, block in enumerate(model.single_transformer_blocks if where == "all" else ()):
        name = f"single_transformer_blocks.{k}.proj_out"
        found[name] = Layer(f"{name}:image", block.proj_out.out_features)
    return found


METHOD = Method(
    paper="arXiv 2601.06163",
    carried="the second matrix of feed-forwards of the text's stream, of both streams, or of all blocks; the anchor's "
    "prompts are the base prompts; all steps of the sampler count. Of one target alone nothing is "
    "shared, and all of its choice is off. Uncertain: how the two halves of A are put on one scale; S is divided by "
    "its largest value in the layer",
    grid=[
        {"where": where, "pictures": 16, "r1": 0.05, "r2": r2, "agnostic": agnostic}
        for where, r2, agnostic in (
            ("both", 0.03, 0.6),
            ("both", 0.1, 0.6),
            ("text", 0.1, 0.6),
            ("all", 0.03, 0.6),
            ("all", 0.1, 0.6),
            ("all", 0.2, 0.6),
        )
    ],
    make=make,
    combine=combine,
    undo="in place, with what was overwritten",
)
