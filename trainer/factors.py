"""Masks as factors on the weights, so that autograd reaches every bit: theta = M * theta' (arXiv 2507.13386).

No hook and no wrapper: the transformer is run by `torch.func.functional_call` with masked copies of the tensors that
the masks touch. One set of factors serves a whole trajectory, so a recomputed step sees the masks of the step it
repeats.
"""

from collections.abc import Iterable, Mapping

import torch

from safeflux.masks import MaskSet
from safeflux.sites import Site, Span, spans
from safeflux.weights import named_weights

Factors = dict[str, torch.Tensor]
"""Site name -> factors, float32, in the site's shape: 1 keeps, 0 switches off, anything between is a relaxed gate."""


def factors_from(masks: MaskSet, sites: Mapping[str, Site], *, requires_grad: bool = False) -> Factors:
    """Return factors of the given sites: 0 and 1 as the mask set says, 1 for a site that it does not name."""
    return {name: _factor(masks, name, site).requires_grad_(requires_grad) for name, site in sites.items()}


def _factor(masks: MaskSet, name: str, site: Site) -> torch.Tensor:
    return torch.from_numpy(masks[name]).float() if name in masks else torch.ones(site.shape)


def masked_parameters(
    transformer: torch.nn.Module, sites: Mapping[str, Site], factors: Factors
) -> dict[str, torch.Tensor]:
    """Return the tensors that the sites touch, multiplied by their factors; for `functional_call`.

    A neuron's factor goes on its outgoing column alone, which scales its output; a modulation has no such column, so
    its rows and biases carry the factor. At 0 and 1 that equals writing both sides.
    """
    weights = named_weights(transformer)
    out: dict[str, torch.Tensor] = {}
    for name, factor in factors.items():
        for span in gated(spans(sites[name])):
            tensor = out.get(span.tensor, weights[span.tensor].detach())
            product = tensor * _spread(factor.to(tensor.device), span, tensor.shape)
            out[span.tensor] = product.to(tensor.dtype)  # a bf16 weight times a float32 factor is rounded once, here
    return out


def gated(places: tuple[Span, ...]) -> Iterable[Span]:
    """The spans that carry the gate: the outgoing columns of a neuron if it has any, else all of them."""
    columns = [span for span in places if span.axis == 1]
    return columns or places


def _spread(factor: torch.Tensor, span: Span, shape: torch.Size) -> torch.Tensor:
    """Factors shaped to multiply the whole tensor: ones outside of the span."""
    if factor.dim() == 2 and factor.shape == shape:
        return factor
    whole = torch.ones(shape[span.axis], *factor.shape[1:], device=factor.device)
    whole = torch.cat([whole[: span.start], factor, whole[span.start + len(factor) :]])
    return whole if factor.dim() == 2 or len(shape) == 1 else whole.unsqueeze(1 - span.axis)
