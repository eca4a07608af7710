"""A transformer run under masks, with the gradient of every bit, and no copy of a weight: theta = M * theta'.

Arxiv 2507.13386 multiplies weights by gates. The same result needs no masked weights to be kept:

- A neuron is gated where it acts. Its outgoing column times z is its activation times z; a modulation's row and bias
  times z is that output times z. Autograd does the rest, with a vector a layer.
- A single weight is gated while its layer runs. The masked matrix is made for that one product, and made again in the
  backward pass, where dL/dz = dL/dW * W for every element.

So a run holds, beside the model, the gates and one layer's temporaries. Gradients leave for the main memory layer by
layer as they arrive.

A batch may have several parts of one size, each under gates of its own: a layer's masked matrices are then as many, and
multiply their parts in one batched product. The rest of the model sees one batch. Tensor shapes: B samples, P parts, R
rows (outputs) and C columns (inputs) of a layer's weight.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.vectors import IN_MEMORY, Vectors

from safeflux.families.sites import Site, Span, spans


def gated(site: Site) -> list[Span]:
    """The places that carry a site's gate: the outgoing columns of a neuron if it has any, else all of its places."""
    places = spans(site)
    return [span for span in places if span.axis == 1] or list(places)


class Gates:
    """The gates of one subset of masks, and what collects their gradients."""

    def __init__(
        self,
        bits: Bits,
        vector: torch.Tensor,
        device: torch.device,
        *,
        learns: bool = True,
        vectors: Vectors = IN_MEMORY,
    ) -> None:
        """Split the gates by site.

        Args:
            bits: The bits that the gates are for.
            vector: One gate per bit, bool or floats (bits,), or (P, bits).
            device: Where the model runs.
            learns: Whether gradients of the gates will be asked for.
            vectors: Makes the gradients.
        """
        self._bits, self._vectors = bits, vectors
        self.dtype = torch.promote_types(vector.dtype, torch.float32)
        """Of the gradients: float32, or float64 for gates of float64."""
        self.shape = vector.shape
        """(bits,), or (P, bits) for parts of the batch."""
        self.values = bits.split(vector.detach())
        """Site name -> gates in the site's shape, after the axis of parts if there is one; those of weight sites come
        to the device layer by layer."""
        self.neurons = {
            name: self.values[name].to(device, self.dtype).requires_grad_(learns)
            for name, site in bits.sites.items()
            if len(site.shape) == 1
        }
        """Site name -> gates of a neuron site, leaves on the device."""
        self.trigger = torch.zeros((), device=device, requires_grad=learns)
        """A leaf that makes autograd visit every gated layer, whatever else needs a gradient."""
        self._arrived: dict[str, torch.Tensor] = {}

    def gradient(self, loss: torch.Tensor, *, keep_graph: bool = False) -> torch.Tensor:
        """Return the gradient of a loss by every bit, in the shape of the gates, on the CPU.

        Args:
            loss: A scalar of an output that was computed under these gates.
            keep_graph: Whether another gradient of the same output will be asked for.
        """
        whole = self._vectors.zeros(*self.shape, dtype=self.dtype)
        self._arrived = self._bits.split(whole)
        leaves = [self.trigger, *self.neurons.values()]
        found = torch.autograd.grad(loss, leaves, retain_graph=keep_graph, allow_unused=True)
        for name, gradient in zip(self.neurons, found[1:], strict=True):
            if gradient is not None:  # of a layer whose output something uses
                self.add(name, gradient)
        return whole

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Take what one run of a layer adds to the gradient of a site."""
        self._arrived[name].add_(gradient.to("cpu", self.dtype))


class GatedModel:
    """A frozen transformer whose sites can be gated; nothing of it is written to."""

    def __init__(self, transformer: torch.nn.Module, bits: Bits, vectors: Vectors = IN_MEMORY) -> None:
        """Find the layers that carry gates.

        Args:
            transformer: A FLUX transformer of diffusers, whose parameters take no gradients.
            bits: The sites that may be masked.
            vectors: Makes the gradients.
        """
        self._bits, self._vectors = bits, vectors
        self._device = next(transformer.parameters()).device
        self._layers: dict[torch.nn.Module, list[tuple[Site, Span]]] = defaultdict(list)
        for site in bits.sites.values():
            for span in gated(site):
                layer, _, own = span.tensor.rpartition(".")
                if own == "weight":  # a bias is gated with the rows of its weight
                    self._layers[transformer.get_submodule(layer)].append((site, span))

    @contextmanager
    def under(self, vector: torch.Tensor, *, learns: bool = True) -> Iterator[Gates]:
        """Run the model under gates for as long as the context is open, backward passes included.

        Args:
            vector: One gate a bit, bool or floats (bits,): 1 keeps, 0 switches off, anything between is relaxed. With
                (P, bits) row k is for the k-th of P equal parts of each batch.
            learns: Whether gradients of the gates will be asked for; without, those of the inputs cost less.
        """
        gates = Gates(self._bits, vector, self._device, learns=learns, vectors=self._vectors)
        try:
            for layer, places in self._layers.items():
                layer.forward = _GatedLayer(layer, places, gates)
            yield gates
        finally:
            for layer in self._layers:
                vars(layer).pop("forward", None)


class _GatedLayer:
    """The forward of one linear layer under gates."""

    def __init__(self, layer: Any, places: list[tuple[Site, Span]], gates: Gates) -> None:
        self._layer, self._gates = layer, gates
        self._elements = [(site.name, span) for site, span in places if len(site.shape) == 2]
        neurons = [(site.name, span) for site, span in places if len(site.shape) == 1]
        self._inputs = [(name, span) for name, span in neurons if span.axis == 1]
        self._outputs = [(name, span) for name, span in neurons if span.axis == 0]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        layer = self._layer
        for name, span in self._inputs:
            x = (x * self._spread(name, span, layer.in_features, x)).to(x.dtype)
        if self._elements:
            if torch.is_autocast_enabled(x.device.type):  # before x is kept, so that the smaller one is
                x = x.to(torch.get_autocast_dtype(x.device.type))
            y: torch.Tensor = _MaskedLinear.apply(x, self._gates.trigger, layer.weight, layer.bias, self)
        else:
            y = F.linear(x, layer.weight, layer.bias)
        for name, span in self._outputs:
            y = (y * self._spread(name, span, layer.out_features, y)).to(y.dtype)
        return y

    def _spread(self, name: str, span: Span, width: int, x: torch.Tensor) -> torch.Tensor:
        """Gates of neurons on the whole axis of a layer, ones outside of the span: (width,), or (B, ..., width)."""
        z = self._gates.neurons[name]
        whole = F.pad(z, (span.start, width - span.start - z.shape[-1]), value=1.0)
        if whole.dim() == 1:
            return whole
        per_sample = whole.repeat_interleave(len(x) // len(whole), dim=0)
        return per_sample.view(len(x), *[1] * (x.dim() - 2), width)

    def product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The layer's outputs, x (z * W)^T + b, (B, ..., R)."""
        masked = self.masked(weight)
        if masked.dim() == 2:
            return F.linear(x, masked, bias)
        y = (self._parts(x) @ masked.mT).view(*x.shape[:-1], len(weight))
        return y if bias is None else y + bias.to(y.dtype)

    def masked(self, weight: torch.Tensor) -> torch.Tensor:
        """The layer's weight under its gates, (R, C) or (P, R, C), in its dtype: filled with zeros or scaled."""
        whole = weight.expand(*self._gates.shape[:-1], *weight.shape)
        for name, span in self._elements:
            z = self._gates.values[name].to(weight.device)
            start, stop = span.start, span.start + z.shape[-2]
            part = whole[..., start:stop, :]
            scaled = part.masked_fill(~z, 0) if z.dtype == torch.bool else (part * z).to(weight.dtype)
            rest = whole[..., :start, :], whole[..., stop:, :]
            whole = scaled if stop - start == len(weight) else torch.cat([rest[0], scaled, rest[1]], dim=-2)
        return whole

    def back(self, grad_y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The gradient of the layer's inputs, (B, ..., C), from that of its outputs."""
        masked = self.masked(weight).to(grad_y.dtype)
        if masked.dim() == 2:
            return grad_y @ masked
        return (self._parts(grad_y) @ masked).view(*grad_y.shape[:-1], weight.shape[1])

    def add_gradient(self, weight: torch.Tensor, x: torch.Tensor, grad_y: torch.Tensor) -> None:
        """Hand on dL/dz = dL/dW * W of each weight site, from the layer's inputs (..., C) and outputs' gradient."""
        inputs, outputs = self._parts(x), self._parts(grad_y)
        for name, span in self._elements:
            rows = slice(span.start, span.start + self._gates.values[name].shape[-2])
            self._gates.add(name, (outputs[..., rows].mT @ inputs).to(self._gates.dtype) * weight[rows])

    def _parts(self, x: torch.Tensor) -> torch.Tensor:
        """The samples and tokens in one line, (n, width), or in one for each part, (P, n / P, width)."""
        parts = self._gates.shape[:-1]
        return x.unflatten(0, (*parts, -1)).flatten(1, -2) if parts else x.flatten(0, -2)


class _MaskedLinear(torch.autograd.Function):
    """y = x (z * W)^T + b, which keeps x and the layer's own W alone, and hands on the gradient of z."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        trigger: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        layer: _GatedLayer,
    ) -> torch.Tensor:
        """See the class."""
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        return layer.product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_y: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """See the class; products run in the dtype of the outputs, which is autocast's in the forward pass."""
        x, weight = ctx.saved_tensors
        layer, dtype = ctx.layer, grad_y.dtype
        if ctx.needs_input_grad[1]:
            layer.add_gradient(weight, x.to(dtype), grad_y)
        grad_x = layer.back(grad_y, weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, grad_y.new_zeros(()), None, None, None
