"""The end-to-end loss of arXiv 2507.13386, over the final output of the whole sampler; one function a term."""

import torch
import torch.nn.functional as F


def erase_loss(masked: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the masked model's output for the concept to the base model's output for the anchor.

    Args:
        masked: F_m(x_T, c), (B, N, C).
        anchor: F(x_T, c_anchor), (B, N, C), of the same noises.
    """
    return F.mse_loss(masked.float(), anchor.float())


def preserve_loss(masked: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the masked model's output for a neutral prompt to the base model's, (B, N, C) each."""
    return F.mse_loss(masked.float(), base.float())


def random_projection(masked: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random signed sum of the output whose squared gradient is, on average, the curvature of `preserve_loss`.

    With r of independent signs and n = B * N * C: E[(d<r, F>/dm)^2] / n = sum_j (dF_j/dm)^2 / n, which is the
    diagonal of the Gauss-Newton form of the mean squared error (Hutchinson's estimate).
    """
    signs = torch.randint(0, 2, masked.shape, generator=generator).to(masked) * 2 - 1
    return (masked.float() * signs).sum() / masked.numel() ** 0.5
