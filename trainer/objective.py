"""The end-to-end losses of a run as functions of the bits' factors, one batch at a time.

All randomness comes from (seed, round, batch), so that a batch is the same whoever asks for it, and whenever.
"""

from typing import Any

import numpy as np
import torch
from safeflux.trainer.bits import Bits
from safeflux.trainer.config import TrainConfig
from safeflux.trainer.factors import Factors, factors_from, masked_parameters
from safeflux.trainer.losses import erase_loss, preserve_loss
from safeflux.trainer.prompts import draw_erase, draw_neutral
from safeflux.trainer.rollout import Condition, fast_math, rollout, sampler_of

from safeflux.maskfile import load_masks
from safeflux.masks import compose
from safeflux.sites import find_sites

_STREAMS = ("erase", "neutral", "projection")


class Objective:
    """Erasure and preservation, over the final output of the whole sampler."""

    def __init__(self, config: TrainConfig, pipe: Any, bits: Bits) -> None:
        self._config, self._pipe, self._bits = config, pipe, bits
        self._transformer = pipe.transformer
        self._sites = find_sites(self._transformer)
        self._sampler = sampler_of(pipe, steps=config.steps, height=config.height, width=config.width)
        self._others = [load_masks(path)[0] for path in config.together_with]

    def erase(self, round_: int, batch: int, factors: Factors) -> torch.Tensor:
        """The erasure loss of one batch: the masked output for the concepts against the base output for the anchors."""
        rng, noise = self._draw("erase", round_, batch)
        prompts = draw_erase(self._config.prompts, rng, self._config.batch)
        anchor = self._base(noise, [p.anchor for p in prompts])
        return erase_loss(self._masked(rng, noise, [p.prompt for p in prompts], factors), anchor)

    def preserve(self, round_: int, batch: int, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
        """The preservation loss of one batch of neutral prompts, and the masked output (B, N, C) that it is of."""
        rng, noise = self._draw("neutral", round_, batch)
        prompts = draw_neutral(self._config.prompts, rng, self._config.batch)
        output = self._masked(rng, noise, prompts, factors)
        return preserve_loss(output, self._base(noise, prompts)), output

    def gradient(self, loss: torch.Tensor, factors: Factors, *, keep_graph: bool = False) -> torch.Tensor:
        """The gradient with respect to every bit, as one flat vector."""
        with fast_math(loss.device):
            gradients = torch.autograd.grad(loss, list(factors.values()), retain_graph=keep_graph)
        return self._bits.join(dict(zip(factors, gradients, strict=True)))

    def generator(self, round_: int, batch: int) -> torch.Generator:
        """For whatever a method draws beside prompts and noises."""
        rng = self._rng("projection", round_, batch)
        return torch.Generator().manual_seed(int(rng.integers(2**62)))

    def _rng(self, stream: str, round_: int, batch: int) -> np.random.Generator:
        return np.random.default_rng((self._config.seed, round_, _STREAMS.index(stream), batch))

    def _draw(self, stream: str, round_: int, batch: int) -> tuple[np.random.Generator, torch.Tensor]:
        rng = self._rng(stream, round_, batch)
        return rng, self._sampler.noise(self._config.batch, int(rng.integers(2**62)))

    @torch.no_grad()
    def _base(self, noise: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        condition = self._encode(prompts)
        with fast_math(noise.device):
            return rollout(self._transformer, self._sampler, noise, condition)

    def _masked(
        self, rng: np.random.Generator, noise: torch.Tensor, prompts: list[str], factors: Factors
    ) -> torch.Tensor:
        """The output under the factors AND some of the other categories' masks; one set serves the whole trajectory."""
        others = compose(*(masks for masks in self._others if rng.random() < 0.5))
        fixed = factors_from(others, {name: self._sites[name] for name in others})
        product = {name: factors[name] * fixed[name] if name in fixed else factors[name] for name in factors}
        parameters = masked_parameters(self._transformer, self._sites, {**fixed, **product})
        condition = self._encode(prompts)
        with fast_math(noise.device):
            return rollout(self._transformer, self._sampler, noise, condition, parameters)

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> Condition:
        tokens, pooled, _ = self._pipe.encode_prompt(
            prompt=prompts, prompt_2=None, max_sequence_length=self._config.max_sequence_length
        )
        return Condition(tokens, pooled)
