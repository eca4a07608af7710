"""Concept semi-permeable membranes (arXiv 2312.16145): a rank-one adapter a target, switched by the prompt's likeness.

An adapter is trained so that v(x, c) becomes v_0(x, a) - eta (v_0(x, c) - v_0(x, a)), while other prompts stay as they
are, the more so the nearer they are to the target (latent anchoring). When drawing, it acts as strongly as the prompt
is like the target (facilitated transport); adapters of several targets add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.peers.material import Material, copied
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.adapters import Adapter
from benchmarks.peers.methods.calls import Asked, Called
from benchmarks.peers.methods.tuning import tune
from safeflux.packs.emoji import words_of
from safeflux.reference.vocabulary import Target


@dataclass(eq=False, kw_only=True)
class Membrane(Adapter):
    """An adapter of rank one on each linear layer of the blocks; `strength` has one factor a sample.

    Attributes:
        like: The target's words as pooled vectors of length one, (W, P).
    """

    like: torch.Tensor

    @classmethod
    def on_blocks(cls, model: torch.nn.Module, like: torch.Tensor) -> Membrane:
        """One that changes nothing yet."""
        linear = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
        return cls.new(model, [n for n in linear if "blocks" in n and "norm" not in n], 1, like=like)

    def nearness(self, pooled: torch.Tensor) -> torch.Tensor:
        """How like prompts are to the target, 0 to 1; (B,) for pooled vectors (B, P)."""
        return (F.normalize(pooled, dim=-1) @ self.like.T).amax(1).clamp(min=0)


def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """One adapter for all targets given; `combine` takes adapters of one each."""
    base, model = material.pipe.transformer, copied(material.pipe)
    like = _pooled(material, [word for target in targets for word in words_of(target.concepts)])
    membrane = Membrane.on_blocks(model, F.normalize(like, dim=-1))
    batches = cycle(zip(material.erased(targets, "prompt"), material.kept(targets), strict=True))

    def loss() -> torch.Tensor:
        erased, kept = next(batches)
        at, elsewhere = material.noised(erased.x0), material.noised(kept.x0)
        with torch.no_grad():
            named, harmless = (material.velocity(base, at, each) for each in (erased.prompt, erased.anchor))
            before = material.velocity(base, elsewhere, kept.prompt)
        goal = harmless - settings["eta"] * (named - harmless)
        assert kept.prompt.pooled is not None
        weight = membrane.nearness(kept.prompt.pooled)
        with membrane.on(model):
            missed = F.mse_loss(material.velocity(model, at, erased.prompt), goal)
            moved = (material.velocity(model, elsewhere, kept.prompt) - before).square().mean((1, 2))
        return missed + settings["anchoring"] * (weight * moved).mean()

    tune(membrane.parameters, loss, settings["steps"], settings["lr"])
    return _made([membrane], settings)


def combine(material: Material, parts: Sequence[Made], settings: Settings) -> Made:
    """All adapters, each as strong as the prompt is like its target."""
    return _made([membrane for part in parts for membrane in part.state], settings)


def _made(membranes: list[Membrane], settings: Settings) -> Made:
    def set_strength(asked: Asked) -> dict[str, Any]:
        for membrane in membranes:
            membrane.strength = membrane.nearness(asked.pooled) if settings["transport"] else torch.ones(1)
        return {}

    @contextmanager
    def drawing(pipe: Any) -> Iterator[Any]:
        with ExitStack() as stack:
            for membrane in membranes:
                stack.enter_context(membrane.on(pipe.transformer))
            yield Called(pipe, set_strength)

    return Made(drawing, sum(membrane.num_bytes for membrane in membranes), membranes)


def _pooled(material: Material, texts: list[str]) -> torch.Tensor:
    pooled = material.encode(texts).pooled
    assert pooled is not None
    return pooled


METHOD = Method(
    paper="arXiv 2312.16145",
    carried="velocities in the place of noise; the adapters are on the linear layers of both kinds of block; likeness "
    "is that of the model's own pooled vectors",
    grid=[
        {"eta": eta, "anchoring": anchoring, "lr": lr, "transport": transport, "steps": 150}
        for eta, anchoring, lr, transport in (
            (1.0, 10.0, 1e-3, True),
            (1.0, 10.0, 1e-3, False),
            (0.0, 10.0, 3e-3, True),
            (0.0, 10.0, 3e-3, False),
            (1.0, 100.0, 3e-3, False),
            (0.0, 1.0, 1e-3, False),
        )
    ],
    make=make,
    combine=combine,
    undo="taken off",
    is_outside=True,
)
