"""Masks as factors on copies of the weights, so that plain autograd reaches every bit: what `GatedModel` must equal."""

from collections.abc import Mapping

import torch
from safeflux.trainer.objective.gating import gated

from safeflux.families.sites import Site, Span
from safeflux.masks.mask_set import MaskSet
from safeflux.model.weights import named_weights

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
        for span in gated(sites[name]):
            tensor = out.get(span.tensor, weights[span.tensor].detach())
            product = tensor * _spread(factor.to(tensor.device), span, tensor.shape)
            out[span.tensor] = product.to(tensor.dtype)  # a bf16 weight times a float32 factor is rounded once, here
    return out


def _spread(factor: torch.Tensor, span: Span, shape: torch.Size) -> torch.Tensor:
    """Factors shaped to multiply the whole tensor: ones outside of the span."""
    if factor.dim() == 2 and factor.shape == shape:
        return factor
    whole = torch.ones(shape[span.axis], *factor.shape[1:], device=factor.device)
    whole = torch.cat([whole[: span.start], factor, whole[span.start + len(factor) :]])
    return whole if factor.dim() == 2 or len(shape) == 1 else whole.unsqueeze(1 - span.axis)
