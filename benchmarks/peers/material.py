"""What every method is given: the model, and the prompts that mask training gets, from the same words.

Shapes: B batch, N image tokens, C channels of a token.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from safeflux.trainer.asked.config import make_config
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.asked.prompts import Pair, PromptSource
from safeflux.trainer.sampling.rollout import Condition, Sampler, encode, rollout, sampler_of, velocity

from safeflux.reference.model import EMOJI_FLUX_CALL
from safeflux.reference.vocabulary import Target


@dataclass(frozen=True)
class Noised:
    """A batch on the way from picture to noise, x = (1 - s) x_0 + s e.

    Attributes:
        x: Latents, (B, N, C).
        sigma: Noise levels s, (B,).
    """

    x: torch.Tensor
    sigma: torch.Tensor


@dataclass(frozen=True, eq=False)
class Erased:
    """A batch of prompts and their anchors, and the base model's pictures of one of the two, (B, N, C)."""

    prompt: Condition
    anchor: Condition
    x0: torch.Tensor


@dataclass(frozen=True, eq=False)
class Kept:
    """A batch of prompts to preserve, and the base model's pictures of them, (B, N, C)."""

    prompt: Condition
    x0: torch.Tensor


@dataclass(eq=False)
class Material:
    """The model and its prompts; `rng` and `noise` are of one seed.

    Attributes:
        pipe: The embedded model, as `load_pipeline` loads it. Nothing here changes it.
        seed: Of prompts and noises.
        batches: Of pictures, which are drawn once and noised anew in each step: methods go through them in turn.
        size: Of a batch.
    """

    pipe: Any
    seed: int = 0
    batches: int = 12
    size: int = 16
    sampler: Sampler = field(init=False)
    rng: np.random.Generator = field(init=False)
    noise: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        """Begin the draws anew."""
        call = EMOJI_FLUX_CALL
        self.sampler = sampler_of(
            self.pipe, steps=call["num_inference_steps"], height=call["height"], width=call["width"]
        )
        self.rng, self.noise = np.random.default_rng(self.seed), torch.Generator().manual_seed(self.seed)

    def source(self, targets: Sequence[Target]) -> PromptSource:
        """The prompts of mask training for these targets: training words alone, no held-out thing."""
        return PromptSource(make_config(embedded_options([target.name for target in targets]), "benchmark"))

    def pairs(self, source: PromptSource, targets: Sequence[Target], count: int | None = None) -> list[Pair]:
        """A batch, or so many, of prompts of the targets, in turn, and their anchors."""
        count = self.size if count is None else count
        each = [-(-count // len(targets))] * len(targets)
        found = [source.erase(t.name, self.rng, n) for t, n in zip(targets, each, strict=True)]
        return [pair for some in zip(*found, strict=True) for pair in some][:count]

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Encoded as the pipeline does."""
        return encode(self.pipe, prompts, EMOJI_FLUX_CALL["max_sequence_length"])

    def mean(self, words: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """One condition for many words, which no prompt has room for: mean tokens (1, L, D), mean pooled (1, P)."""
        encoded = self.encode(words)
        assert encoded.pooled is not None
        return encoded.tokens.mean(0, keepdim=True), encoded.pooled.mean(0, keepdim=True)

    @torch.no_grad()
    def pictures(self, condition: Condition, transformer: torch.nn.Module | None = None) -> torch.Tensor:
        """Latents x_0 that the model draws, (B, N, C)."""
        start = torch.randn(len(condition.tokens), *self.sampler.shape, generator=self.noise)
        return rollout(transformer or self.pipe.transformer, self.sampler, start, condition)

    def erased(self, targets: Sequence[Target], drawn: str) -> list[Erased]:
        """`batches` of the targets' prompts and anchors, with pictures of one of the two, `prompt` or `anchor`."""
        source, found = self.source(targets), []
        for _ in range(self.batches):
            pairs = self.pairs(source, targets)
            both = {part: self.encode([getattr(pair, part) for pair in pairs]) for part in ("prompt", "anchor")}
            found.append(Erased(**both, x0=self.pictures(both[drawn])))
        return found

    def kept(self, targets: Sequence[Target]) -> list[Kept]:
        """`batches` of prompts to preserve, with their pictures."""
        source, found = self.source(targets), []
        for _ in range(self.batches):
            condition = self.encode([pair.prompt for pair in source.preserve(self.rng, self.size)])
            found.append(Kept(condition, self.pictures(condition)))
        return found

    def noised(self, x0: torch.Tensor, sigma: torch.Tensor | None = None) -> Noised:
        """At levels s, (B,), or at levels that are logit-normal, as in the model's own training (arXiv 2403.03206)."""
        if sigma is None:
            sigma = torch.sigmoid(torch.randn(len(x0), generator=self.noise))
        noise = torch.randn(x0.shape, generator=self.noise)
        return Noised((1 - sigma)[:, None, None] * x0 + sigma[:, None, None] * noise, sigma)

    @torch.no_grad()
    def on_the_way(
        self, transformer: torch.nn.Module, condition: Condition, within: tuple[float, float] = (0.0, 1.0)
    ) -> Noised:
        """Where a model stands before a random step of the sampler, on its own way from noise.

        Args:
            transformer: The model.
            condition: What it draws.
            within: The part of the steps that the random one is among.
        """
        steps = len(self.sampler.sigmas) - 1
        first, last = (round(share * steps) for share in within)
        step = int(self.rng.integers(first, max(first + 1, last)))
        noise = torch.randn(len(condition.tokens), *self.sampler.shape, generator=self.noise)
        x = rollout(transformer, replace(self.sampler, sigmas=self.sampler.sigmas[: step + 1]), noise, condition)
        return Noised(x, self.sampler.sigmas[step].expand(len(x)))

    @torch.no_grad()
    def images(self, x0: torch.Tensor) -> list[Image.Image]:
        """Latents (B, N, C) as pictures."""
        pipe, call = self.pipe, EMOJI_FLUX_CALL
        latents = pipe._unpack_latents(x0, call["height"], call["width"], pipe.vae_scale_factor)
        latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
        found: list[Image.Image] = pipe.image_processor.postprocess(pipe.vae.decode(latents).sample, output_type="pil")
        return found

    def velocity(self, transformer: torch.nn.Module, at: Noised, condition: Condition) -> torch.Tensor:
        """The model's velocity there, (B, N, C)."""
        return velocity(transformer, self.sampler, at.x, at.sigma, condition)


@contextmanager
def replaced(pipe: Any, transformer: torch.nn.Module) -> Iterator[Any]:
    """The pipeline with another transformer."""
    own = pipe.transformer
    pipe.transformer = transformer
    try:
        yield pipe
    finally:
        pipe.transformer = own


def copied(pipe: Any) -> Any:
    """A copy of the transformer to be changed, its parameters frozen."""
    return copy.deepcopy(pipe.transformer).requires_grad_(False)
