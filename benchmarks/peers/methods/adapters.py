"""Low-rank adapters (LoRA, arXiv 2106.09685) on linear layers: y = W x + b + g up (down x)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F

from benchmarks.peers.material import Material, copied
from benchmarks.peers.method import Made
from benchmarks.peers.methods.tuning import in_place_of


@dataclass(eq=False)
class Adapter:
    """An adapter of some layers.

    Attributes:
        layers: Name -> down, (R, I), and up, (O, R).
        strength: Factors g of the next batch, (B,) or (1,).
    """

    layers: dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]
    strength: torch.Tensor = field(default_factory=lambda: torch.ones(1))

    @classmethod
    def new(cls, model: torch.nn.Module, names: Collection[str], rank: int, **rest: Any) -> Self:
        """One on the layers of these names that changes nothing yet."""
        layers = {}
        for name in names:
            layer = model.get_submodule(name)
            down = torch.randn(rank, layer.in_features) / layer.in_features**0.5
            layers[name] = torch.nn.Parameter(down), torch.nn.Parameter(torch.zeros(layer.out_features, rank))
        return cls(layers, **rest)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All that is trained."""
        return [part for pair in self.layers.values() for part in pair]

    @property
    def num_bytes(self) -> int:
        """What has to be stored of it."""
        return sum(each.numel() * each.element_size() for each in self.parameters)

    @contextmanager
    def on(self, model: torch.nn.Module) -> Iterator[None]:
        """In force while the context is open."""
        with ExitStack() as stack:
            for name, (down, up) in self.layers.items():

                def add(
                    _: Any,
                    given: tuple[torch.Tensor],
                    out: torch.Tensor,
                    down: torch.Tensor = down,
                    up: torch.Tensor = up,
                ) -> torch.Tensor:
                    strength = self.strength.view(-1, *[1] * (out.dim() - 1))
                    return out + strength * F.linear(F.linear(given[0], down), up)

                stack.callback(model.get_submodule(name).register_forward_hook(add).remove)
            yield

    @torch.no_grad()
    def change(self, name: str) -> torch.Tensor:
        """What it adds to a layer's matrix, (O, I)."""
        down, up = self.layers[name]
        return up @ down

    def merged(self, material: Material) -> Made:
        """A copy of the transformer with this in its weights; the adapter alone has to be stored."""
        model = copied(material.pipe)
        with torch.no_grad():
            for name in self.layers:
                model.get_submodule(name).weight += self.change(name)
        return in_place_of(model, self.parameters)


def layers_of(model: torch.nn.Module, within: str, ends: Collection[str]) -> list[str]:
    """Names of the linear layers that begin with `within` and end as one of `ends`."""
    named = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    return [name for name in named if name.startswith(within) and any(name.endswith(end) for end in ends)]
