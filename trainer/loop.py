"""The run: rounds that switch bits off by saliency until the concept is gone, then rounds that exchange bits.

One round: estimate what every bit is worth at the current mask, over fresh prompts and noises (`saliency`); switch
(`selection`); log; validate now and then; write a checkpoint. Of the validated masks that erase enough, the one that
preserves best is the result. All randomness comes from (seed, round, batch), so a run that was killed goes on with
the same bits as one that was not.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safeflux.trainer.config import TrainConfig
from safeflux.trainer.gates import Factors, factors_from, masked_parameters
from safeflux.trainer.losses import erase_loss, preserve_loss, random_projection
from safeflux.trainer.prompts import draw_erase, draw_neutral
from safeflux.trainer.rollout import Condition, fast_math, rollout, sampler_of
from safeflux.trainer.saliency import Bits, Estimates
from safeflux.trainer.selection import exchange, switch_off

from safeflux.errors import ConfigError
from safeflux.maskfile import load_masks
from safeflux.masks import MaskSet, compose
from safeflux.sites import find_sites

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"


@dataclass(frozen=True)
class RoundReport:
    """What one round did."""

    round: int
    phase: str
    """`saliency` or `exchange`."""
    erase_loss: float
    preserve_loss: float
    masked: int
    """Bits that are off after the round."""
    share_masked: float
    """Of all bits that may be masked."""
    found: float | None
    """Share of validation pictures in which the judge still finds the concept; None in rounds without validation."""
    right: float | None
    """Share of validation pictures of things to preserve in which the judge finds what was asked for; None likewise."""
    seconds: float


@dataclass(frozen=True)
class Validation:
    """What a judge sees in validation pictures under a mask set, as shares."""

    found: float
    """The concept, where it was asked for."""
    right: float
    """The thing to preserve that was asked for."""


Validator = Callable[[MaskSet], Validation]


class Run:
    """One training run: the frozen model, the bits, and what is known of them."""

    def __init__(self, config: TrainConfig, pipe: Any, folder: Path, validate: Validator | None = None) -> None:
        self.config, self.folder, self._pipe, self._validate = config, folder, pipe, validate
        self._transformer = pipe.transformer.requires_grad_(False).eval()
        self._sites = find_sites(self._transformer)
        self.bits = Bits({name: site for name, site in self._sites.items() if site.kind in config.selection.kinds})
        self.sampler = sampler_of(pipe, steps=config.steps, height=config.height, width=config.width)
        self._others = [load_masks(path)[0] for path in config.together_with]
        initial = load_masks(config.initial)[0] if config.initial else MaskSet({})
        self.keep = self.bits.keep_of(initial)
        self.estimates = Estimates.zeros(self.bits.count)
        self.round, self.is_erased = 0, config.initial is not None
        self._exchanged = 0
        self._best, self._best_right = self.keep, -1.0

    @property
    def masks(self) -> MaskSet:
        """The mask set as it stands."""
        return self.bits.masks_of(self.keep)

    @property
    def result(self) -> MaskSet:
        """Of the validated mask sets that erase enough, the one that preserves best; without any, the last."""
        return self.masks if self._best_right < 0 else self.bits.masks_of(self._best)

    def rounds(self) -> Iterator[RoundReport]:
        """Run all rounds that are left, yielding a report after each; its checkpoint is on disk by then."""
        self._resume()
        while (phase := self._phase()) is not None:
            began = time.monotonic()
            losses = self._estimate()
            if phase == "saliency":
                self._switch_off()
            else:
                self._exchange()
            self.round += 1
            seen = self._check()
            masked = int((~self.keep).count_nonzero())
            report = RoundReport(
                round=self.round,
                phase=phase,
                erase_loss=losses[0],
                preserve_loss=losses[1],
                masked=masked,
                share_masked=masked / len(self.keep),
                found=seen and seen.found,
                right=seen and seen.right,
                seconds=time.monotonic() - began,
            )
            self._save(report)
            yield report

    def _phase(self) -> str | None:
        if not self.is_erased and self.round < self.config.selection.rounds:
            return "saliency"
        return "exchange" if self._exchanged < self.config.selection.exchange_rounds else None

    def _switch_off(self) -> None:
        chosen = self.config.selection
        self.keep = switch_off(self.keep, self.estimates, chosen.preserve, chosen.bits_per_round)

    def _exchange(self) -> None:
        chosen = self.config.selection
        left = 1 - self._exchanged / chosen.exchange_rounds
        counts = round(chosen.exchange_on * left), round(chosen.exchange_off * left)
        self.keep = exchange(self.keep, self.estimates, chosen.preserve, *counts)
        self._exchanged += 1

    def _check(self) -> Validation | None:
        is_due = self.round % self.config.validate_every == 0 or self._phase() is None
        if self._validate is None or not is_due:
            return None
        seen = self._validate(self.masks)
        if seen.found <= self.config.target_found:
            self.is_erased = True
            if seen.right > self._best_right:
                self._best, self._best_right = self.keep, seen.right
        return seen

    def _estimate(self) -> tuple[float, float]:
        """Blend one round's estimates in; return the mean erasure and preservation loss."""
        chosen = self.config.selection
        fresh = Estimates.zeros(self.bits.count)
        erased = [self._erase_batch(k, fresh) / chosen.erase_batches for k in range(chosen.erase_batches)]
        kept = [self._neutral_batch(k, fresh) / chosen.neutral_batches for k in range(chosen.neutral_batches)]
        fresh.erase /= chosen.erase_batches
        fresh.preserve /= chosen.neutral_batches
        fresh.price /= chosen.neutral_batches
        self.estimates.update(fresh, chosen.smoothing)
        return sum(erased), sum(kept)

    def _erase_batch(self, k: int, fresh: Estimates) -> float:
        rng, noise = self._draw("erase", k)
        prompts = draw_erase(self.config.prompts, rng, self.config.batch)
        with torch.no_grad(), fast_math(noise.device):
            anchor = rollout(self._transformer, self.sampler, noise, self.encode([p.anchor for p in prompts]))
        factors, others = self._factors(rng)
        with fast_math(noise.device):
            output = self._masked(factors, others, noise, [p.prompt for p in prompts])
            loss = erase_loss(output, anchor)
            fresh.erase += self._gradient(loss, factors)
        return loss.item()

    def _neutral_batch(self, k: int, fresh: Estimates) -> float:
        rng, noise = self._draw("neutral", k)
        prompts = draw_neutral(self.config.prompts, rng, self.config.batch)
        with torch.no_grad(), fast_math(noise.device):
            base = rollout(self._transformer, self.sampler, noise, self.encode(prompts))
        factors, others = self._factors(rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        with fast_math(noise.device):
            output = self._masked(factors, others, noise, prompts)
            loss = preserve_loss(output, base)
            fresh.preserve += self._gradient(loss, factors, keep_graph=True)
            fresh.price += self._gradient(random_projection(output, generator), factors).square()
        return loss.item()

    def _draw(self, what: str, k: int) -> tuple[np.random.Generator, torch.Tensor]:
        rng = np.random.default_rng((self.config.seed, self.round, ("erase", "neutral").index(what), k))
        return rng, self.sampler.noise(self.config.batch, int(rng.integers(2**62)))

    def _factors(self, rng: np.random.Generator) -> tuple[Factors, MaskSet]:
        """The current mask's bits as factors, and the other categories' masks that are on in this batch."""
        others = compose(*(masks for masks in self._others if rng.random() < 0.5))
        return factors_from(self.masks, self.bits.sites, requires_grad=True), others

    def _masked(self, factors: Factors, others: MaskSet, noise: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """The output under the current mask AND the others'; one set of factors serves the whole trajectory."""
        fixed = factors_from(others, {name: self._sites[name] for name in others})
        product = {name: factors[name] * fixed[name] if name in fixed else factors[name] for name in factors}
        parameters = masked_parameters(self._transformer, self._sites, {**fixed, **product})
        return rollout(self._transformer, self.sampler, noise, self.encode(prompts), parameters)

    def _gradient(self, loss: torch.Tensor, factors: Factors, keep_graph: bool = False) -> torch.Tensor:
        gradients = torch.autograd.grad(loss, list(factors.values()), retain_graph=keep_graph)
        return self.bits.join(dict(zip(factors, gradients, strict=True)))

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """The prompts' embeddings, as the pipeline computes them."""
        tokens, pooled, _ = self._pipe.encode_prompt(
            prompt=prompts, prompt_2=None, max_sequence_length=self.config.max_sequence_length
        )
        return Condition(tokens, pooled)

    def _save(self, report: RoundReport) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        staged = self.folder / f"{CHECKPOINT}.partial"
        state = {
            "config": config_digest(self.config),
            "keep": self.keep,
            "estimates": self.estimates.state_dict(),
            "round": self.round,
            "exchanged": self._exchanged,
            "is_erased": self.is_erased,
            "best": self._best,
            "best_right": self._best_right,
        }
        torch.save(state, staged)
        os.replace(staged, self.folder / CHECKPOINT)
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(asdict(report)) + "\n")

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        if state["config"] != config_digest(self.config):
            raise ConfigError(
                f"{path}: this folder holds a run of another configuration. Go on with that configuration, "
                "or choose another --out."
            )
        self.keep, self.estimates = state["keep"], Estimates(**state["estimates"])
        self.round, self._exchanged, self.is_erased = state["round"], state["exchanged"], state["is_erased"]
        self._best, self._best_right = state["best"], state["best_right"]


def config_digest(config: TrainConfig) -> str:
    """The sha256 of the whole configuration."""
    return sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
