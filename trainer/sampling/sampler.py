"""The inputs of a rollout: the schedule and geometry of a sampler, and the conditions of a batch. Plain records.

Shapes: B batch, N image tokens, R reference tokens, L text tokens, C channels of a token, D and P widths of the text
encoders, A axes of a position.
"""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Reference:
    """An image to draw after, encoded: `tokens` (B, R, C), and their position ids (R, A)."""

    tokens: torch.Tensor
    ids: torch.Tensor


@dataclass(frozen=True)
class Condition:
    """The conditions of a batch; made by `pipelines.encode`.

    Attributes:
        tokens: Encoded prompts, (B, L, D). The transformer runs in their dtype.
        pooled: One vector a prompt, (B, P); None for a family without it.
        text_ids: Position ids of the text tokens, (L, A); None where all are zero.
        reference: An image that the model sees beside the prompt; None without.
        mask: What the pipeline's attention mask has for each text token, (B, L); None for a family without one.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor | None = None
    text_ids: torch.Tensor | None = None
    reference: Reference | None = None
    mask: torch.Tensor | None = None

    def __getitem__(self, index: Any) -> "Condition":
        """A part of the batch, or samples of it several times."""
        pooled, reference, mask = self.pooled, self.reference, self.mask
        return Condition(
            self.tokens[index],
            None if pooled is None else pooled[index],
            self.text_ids,
            None if reference is None else Reference(reference.tokens[index], reference.ids),
            None if mask is None else mask[index],
        )


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (Ho & Salimans, arXiv 2207.12598): each step runs the model without the prompt too.

    Attributes:
        negative: What it runs with then, for one sample: the encoded negative prompt, which is empty.
        scale: Of the difference that the prompt makes; 1 would be the prompt alone.
    """

    negative: Condition
    scale: float


@dataclass(frozen=True)
class Sampler:
    """The schedule and the geometry of a run; made by `pipelines.sampler_of`.

    Attributes:
        sigmas: Noise levels from 1 to 0, (steps + 1,).
        image_ids: Position ids of the image tokens, (N, A).
        guidance: Guidance scale of a guidance-distilled model; None for a model without the embedding.
        shape: (N, C) of one sample's packed latents.
        compute_dtype: Of matrix products; the weights and the latents keep theirs.
        cfg: Guidance by a second forward in each step; None for a single one.
    """

    sigmas: torch.Tensor
    image_ids: torch.Tensor
    guidance: float | None
    shape: tuple[int, int]
    compute_dtype: torch.dtype
    cfg: ClassifierFree | None = None

    def noise(self, count: int, seed: int) -> torch.Tensor:
        """`count` starting points x_T, float32 (count, N, C) on the CPU, the same for the same seed."""
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(seed))
