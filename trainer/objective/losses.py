"""The end-to-end loss of arXiv 2507.13386, over the final output of the whole sampler; one function a term."""

import torch

LEAST_CHANGE = 0.25
"""Pairs whose prompt and anchor give nearly the same picture, or pictures with nearly nothing in them, would otherwise
count without bounds."""


def distance(output: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of each sample's outputs; (B, N, C) each, to (B,)."""
    return (output.float() - other.float()).square().mean(dim=(1, 2))


def erase_loss(masked: torch.Tensor, anchor: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Distance of the masked model's output for the concept to the base model's for the anchor, a sample each, (B,).

    Args:
        masked: F_m(x_T, c), (B, N, C).
        anchor: F(x_T, c_anchor), (B, N, C), of the same noises.
        change: The distance that counts as 1, (B,). With the base model's own distance of the two, a thing that covers
            little of the picture counts as much as one that covers all of it, and 1 means that nothing was erased; ones
            give the plain loss of the paper.
    """
    return distance(masked, anchor) / change


def standing_out(outputs: torch.Tensor) -> torch.Tensor:
    """How much the content of each picture stands out from its ground: the variance over its places; (P, N, C) to (P,).

    In units of the mean over all pictures, and no less than `LEAST_CHANGE` of it.

    Examples:
        >>> thing = torch.tensor([[0.0], [0.0], [0.0], [1.0]])
        >>> standing_out(torch.stack([0 * thing, thing, 3 * thing]))
        tensor([0.2500, 0.3000, 2.7000])
    """
    variance = outputs.float().var(dim=1).mean(dim=1)
    return (variance / variance.mean()).clamp_min(LEAST_CHANGE)


def random_projection(masked: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random signed sum of the output whose squared gradient is, on average, the curvature of the mean `distance`.

    With r of independent signs and n = B * N * C: E[(d<r, F>/dm)^2] / n = sum_j (dF_j/dm)^2 / n, which is the
    diagonal of the Gauss-Newton form of the mean squared error (Hutchinson's estimate).
    """
    signs = torch.randint(0, 2, masked.shape, generator=generator).to(masked) * 2 - 1
    return (masked.float() * signs).sum() / masked.numel() ** 0.5
