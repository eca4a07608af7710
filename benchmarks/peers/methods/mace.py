"""MACE (arXiv 2403.06135): maps of the text in closed form, an adapter a concept, and one map again in closed form.

Keys and values of text tokens, W, are first refined to W', by least squares: tokens beside a concept's are mapped to
where W takes them beside the anchor, and tokens of prompts to preserve where they were. On top of W', an adapter for
each concept is trained to lower the attention A that its tokens get where it is drawn, |A M|^2 for a mask M of the
picture, at noise levels s about which the thing takes its form: p(s) in proportion to
sigmoid(g (s - s_1)) - sigmoid(g (s - s_2)). At last W* is the map that takes each concept's tokens to where W' with its
adapter takes them, and tokens to preserve where W does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from safeflux.trainer.asked.prompts import Pair

from benchmarks.peers.material import Material, Noised, copied
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.adapters import Adapter, layers_of
from benchmarks.peers.methods.closed_form import Term, solve
from benchmarks.peers.methods.looking import attention, matched, own_tokens, seen
from benchmarks.peers.methods.tuning import in_place_of, tune
from safeflux.reference.vocabulary import Target

FOCUS, SLOPE = (0.36, 0.54), 57.0
"""Noise levels of the signal-to-noise ratio that the paper's steps 200 and 400 of 1,000 have, and its slope of .05 a
step."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Means over tokens of the outer products of a layer's inputs, (I, I).

    Attributes:
        moved: For tokens beside the concept: inputs beside the anchor by inputs beside the concept.
        beside: Inputs beside the concept by themselves.
        whole: All inputs under the concept's prompts.
        kept: All inputs under prompts to preserve.
    """

    moved: torch.Tensor
    beside: torch.Tensor
    whole: torch.Tensor
    kept: torch.Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """What one target adds: layer -> moments, and layer -> the change by its adapter, (O, I)."""

    moments: Mapping[str, Moments]
    change: Mapping[str, torch.Tensor]


def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """An adapter a target, then all of them in one map."""
    return _made(material, [_part(material, target, settings) for target in targets], settings)


def combine(material: Material, parts: Sequence[Made], settings: Settings) -> Made:
    """Refine for all targets at once, and fuse their adapters."""
    return _made(material, [one for part in parts for one in part.state], settings)


def _made(material: Material, parts: Sequence[Part], settings: Settings) -> Made:
    model, changed = copied(material.pipe), []
    for name in _layers(model):
        layer = model.get_submodule(name)
        moments, changes = [part.moments[name] for part in parts], [part.change[name] for part in parts]
        layer.weight.copy_(fused(layer.weight, moments, changes, settings))
        changed.append(layer.weight)
    return in_place_of(model, changed, list(parts))


def refined(weight: torch.Tensor, moments: Sequence[Moments], settings: Settings) -> torch.Tensor:
    """W', (O, I)."""
    return solve([*(Term(weight, one.moved, one.beside) for one in moments), *_rest(weight, moments, settings)])


def fused(
    weight: torch.Tensor, moments: Sequence[Moments], changes: Sequence[torch.Tensor], settings: Settings
) -> torch.Tensor:
    """W*, (O, I)."""
    first = refined(weight, moments, settings)
    own = [Term.kept(first + change, one.whole, 1.0) for one, change in zip(moments, changes, strict=True)]
    return solve([*own, *_rest(weight, moments, settings)])


def _rest(weight: torch.Tensor, moments: Sequence[Moments], settings: Settings) -> list[Term]:
    """Tokens to preserve, and the map itself."""
    kept = [Term.kept(weight, one.kept, settings["preserve"]) for one in moments]
    return [*kept, Term.kept(weight, torch.eye(weight.shape[1]), settings["ridge"] * len(moments))]


def _layers(model: torch.nn.Module) -> list[str]:
    return layers_of(model, "transformer_blocks", ("add_k_proj", "add_v_proj"))


def _part(material: Material, target: Target, settings: Settings) -> Part:
    """Look, refine for this target alone, and train its adapter."""
    batches = [_drawn(material, target) for _ in range(material.batches)]
    moments, model = _moments(material, target, batches), copied(material.pipe)
    names = _layers(model)
    with torch.no_grad():
        for name in names:
            layer = model.get_submodule(name)
            layer.weight.copy_(refined(layer.weight, [moments[name]], settings))
    adapter, turns = Adapter.new(model, names, settings["rank"]), cycle(batches)

    def loss() -> torch.Tensor:
        batch = next(turns)
        with adapter.on(model):
            _, maps = attention(material, model, _focused(material, batch.x0), batch.prompt)
        there = torch.einsum("bn,bl->bnl", batch.shown, batch.own)
        return torch.stack([(each * there[:, None]).square().sum((2, 3)).mean() for each in maps]).mean()

    tune(adapter.parameters, loss, settings["steps"], settings["lr"])
    return Part(moments, {name: adapter.change(name) for name in names})


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Prompts of a target, their pictures, and where in them the target is: floats (B, N) and (B, L)."""

    pairs: Sequence[Pair]
    prompt: Any
    anchor: Any
    x0: torch.Tensor
    shown: torch.Tensor
    own: torch.Tensor


def _drawn(material: Material, target: Target) -> _Drawn:
    """The target is where its picture differs from its anchor's, of the same noise, by more than on average."""
    pairs = material.pairs(material.source([target]), [target])
    prompts, anchors = [pair.prompt for pair in pairs], [pair.anchor for pair in pairs]
    prompt, anchor = material.encode(prompts), material.encode(anchors)
    state = material.noise.get_state()
    x0 = material.pictures(prompt)
    material.noise.set_state(state)
    apart = (x0 - material.pictures(anchor)).norm(dim=-1)
    shown = (apart > apart.mean(1, keepdim=True)).float()
    return _Drawn(pairs, prompt, anchor, x0, shown, own_tokens(material, prompts, anchors).float())


@torch.no_grad()
def _moments(material: Material, target: Target, batches: Sequence[_Drawn]) -> dict[str, Moments]:
    base = material.pipe.transformer
    sums: dict[str, list[torch.Tensor]] = {}
    for batch, kept in zip(batches, material.kept([target]), strict=True):
        at, elsewhere = material.noised(batch.x0), material.noised(kept.x0)
        runs = ((at, batch.prompt), (at, batch.anchor), (elsewhere, kept.prompt))
        named, harmless, others = (_inputs(material, base, *run) for run in runs)
        places = matched(material, [p.prompt for p in batch.pairs], [p.anchor for p in batch.pairs])
        for name in named:
            x = torch.cat([named[name][k, [i for i, _ in row]] for k, row in enumerate(places)])
            y = torch.cat([harmless[name][k, [j for _, j in row]] for k, row in enumerate(places)])
            every, rest = named[name].flatten(0, 1), others[name].flatten(0, 1)
            found = [a.T.double() @ b.double() / len(a) for a, b in ((y, x), (x, x), (every, every), (rest, rest))]
            sums[name] = [a + b for a, b in zip(sums.get(name, [0, 0, 0, 0]), found, strict=True)]
    return {name: Moments(*(each / len(batches) for each in found)) for name, found in sums.items()}


def _inputs(material: Material, model: torch.nn.Module, at: Noised, condition: Any) -> dict[str, torch.Tensor]:
    with seen(model, _layers(model)) as found:
        material.velocity(model, at, condition)
    return {name: given for name, (given, _) in found.items()}


def _focused(material: Material, x0: torch.Tensor) -> Noised:
    """Noised at levels of the paper's density."""
    levels = torch.linspace(0.01, 0.99, 99)
    low, high = (torch.sigmoid(SLOPE * (levels - level)) for level in FOCUS)
    sigma = levels[torch.multinomial(low - high, len(x0), replacement=True, generator=material.noise)]
    return material.noised(x0, sigma)


METHOD = Method(
    paper="arXiv 2403.06135",
    carried="keys and values of text tokens in the blocks of two streams, whose inputs change with the picture and its "
    "noise: they are taken from noised pictures; the mask is where pictures of prompt and anchor differ, in the place "
    "of a segmenter's; levels of noise are those of the paper's signal-to-noise ratios. Uncertain: on which tokens the "
    "last map is fitted; all those of a concept's prompts are taken",
    grid=[
        {"preserve": preserve, "ridge": ridge, "rank": 1, "lr": lr, "steps": 50}
        for preserve, ridge, lr in (
            (1.0, 1e-3, 1e-2),
            (0.1, 1e-3, 1e-2),
            (0.1, 1e-5, 1e-2),
            (0.01, 1e-5, 1e-2),
            (0.1, 1e-3, 3e-2),
            (0.01, 1e-3, 3e-2),
        )
    ],
    make=make,
    combine=combine,
)
