"""EraseAnything (arXiv 2412.20413): an adapter on text queries and keys, by turns for erasing and for all else.

Erasing: v(x, c) goes to v_0(x, 0) - eta (v_0(x, c) - v_0(x, 0)), as in ESD, for prompts whose words are shuffled, and
the attention that the concept's tokens get goes down. All else: flow matching on pictures to preserve, and a contrast
that is turned round: what the concept attends to should be like what other things attend to, and unlike a synonym,
log (exp(F_c F_s / tau) / sum_k exp(F_c F_k / tau)) for unit features F of the concept, a synonym s and things k.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from safeflux.trainer.asked.prompts import Pair

from benchmarks.peers.material import Material, Noised
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.adapters import Adapter, layers_of
from benchmarks.peers.methods.looking import attention, own_tokens
from benchmarks.peers.methods.tuning import tune
from safeflux.packs.emoji import words_of
from safeflux.reference.vocabulary import Target, known_concepts, vocabulary

OTHERS, FEW, TAU = 3, 4, 0.07
"""Things that a concept is set against, prompts for which it is, and the temperature of that."""


def turned_contrast(ours: torch.Tensor, synonym: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The contrast for unit features (B, D), (B, D) and (K, B, D), averaged; lower is more like the others."""
    near = (ours * synonym).sum(-1) / TAU
    return (near - ((ours * others).sum(-1) / TAU).logsumexp(0)).mean()


def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """Train an adapter, one step for erasing and one for all else in turn."""
    base = material.pipe.transformer
    adapter = Adapter.new(base, layers_of(base, "transformer_blocks", ("add_q_proj", "add_k_proj")), settings["rank"])
    source, empty, kept = material.source(targets), material.encode([""] * material.size), cycle(material.kept(targets))

    def erase() -> torch.Tensor:
        pairs = [_shuffled(pair, material.rng) for pair in material.pairs(source, targets)]
        prompts = [pair.prompt for pair in pairs]
        condition = material.encode(prompts)
        with adapter.on(base):
            at = material.on_the_way(base, condition)
        with torch.no_grad():
            named, nothing = (material.velocity(base, at, each) for each in (condition, empty))
            goal = nothing - settings["eta"] * (named - nothing)
        with adapter.on(base):
            ours, maps = attention(material, base, at, condition)
        seen = own_tokens(material, prompts, [pair.anchor for pair in pairs])
        attended = torch.stack([(each.mean((1, 2)) * seen).sum(1).mean() for each in maps]).mean()
        return F.mse_loss(ours, goal) + settings["attention"] * attended

    def preserve() -> torch.Tensor:
        batch, pairs = next(kept), material.pairs(source, targets, FEW)
        at = material.noised(batch.x0)
        flow = (at.x - batch.x0) / at.sigma[:, None, None]
        with adapter.on(base):
            held = F.mse_loss(material.velocity(base, at, batch.prompt), flow)
            return held + settings["contrast"] * _contrast(material, base, pairs)

    turns = cycle((erase, preserve))
    tune(adapter.parameters, lambda: next(turns)(), settings["steps"], settings["lr"])
    return adapter.merged(material)


def _shuffled(pair: Pair, rng: Any) -> Pair:
    """The parts between commas of a prompt and of its anchor, in the same new order."""
    both = [text.split(", ") for text in (pair.prompt, pair.anchor)]
    order = rng.permutation(len(both[0]))
    return Pair(*(", ".join(parts[k] for k in order) for parts in both))


def _contrast(material: Material, model: Any, pairs: Sequence[Pair]) -> torch.Tensor:
    """By what the same prompts attend to with a synonym, and with other things, in the place of the concept."""
    at = material.noised(torch.randn(len(pairs), *material.sampler.shape, generator=material.noise))
    synonyms = [words_of([vocabulary()[pair.concept or ""]]) for pair in pairs]
    things = [words_of(known_concepts())] * len(pairs)

    def features(among: Sequence[Sequence[str]] | None) -> torch.Tensor:
        words = [some[int(material.rng.integers(len(some)))] for some in among] if among else None
        return _features(material, model, at, pairs, words)

    ours = features(None)
    with torch.no_grad():
        synonym, *others = (features(among) for among in (synonyms, *[things] * OTHERS))
    return turned_contrast(ours, synonym, torch.stack(others))


def _features(
    material: Material, model: Any, at: Noised, pairs: Sequence[Pair], words: Sequence[str] | None
) -> torch.Tensor:
    """How much each image token attends to the tokens that the anchor has not, by block and head; unit vectors."""
    anchors = [pair.anchor for pair in pairs]
    prompts = [pair.prompt for pair in pairs]
    if words:
        prompts = [text.replace("nothing", word) for text, word in zip(anchors, words, strict=True)]
    own = own_tokens(material, prompts, anchors)
    _, maps = attention(material, model, at, material.encode(prompts))
    rows = [torch.einsum("bhnl,bl->bhn", each, own.to(each)).flatten(1) for each in maps]
    return F.normalize(torch.cat(rows, dim=1), dim=1)


METHOD = Method(
    paper="arXiv 2412.20413",
    carried="made for FLUX; synonyms and other things are from the vocabulary, where the paper asks a language model; "
    "parts of a prompt are shuffled, not single words; targets that are erased together are trained together. "
    "Uncertain: the sign of the contrast, which is taken so that it does what the paper says of it; and its features, "
    "which are the attention of image tokens to those of the concept",
    grid=[
        {"rank": 4, "eta": eta, "attention": attention, "contrast": contrast, "lr": lr, "steps": 200}
        for eta, attention, contrast, lr in (
            (1.0, 1.0, 0.01, 1e-3),
            (1.0, 1.0, 0.01, 5e-3),
            (1.0, 10.0, 0.01, 5e-3),
            (3.0, 1.0, 0.01, 3e-3),
            (1.0, 1.0, 0.1, 3e-3),
            (1.0, 1.0, 0.0, 5e-3),
        )
    ],
    make=make,
)
