"""The terms that start from noised pictures: what the masked model still knows of a thing, and of what is kept."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.erasure import Term
from safeflux.trainer.objective.bank import Bank
from safeflux.trainer.objective.noised import Sample, known, noised
from safeflux.trainer.objective.references import References
from safeflux.trainer.processes import Processes
from safeflux.trainer.sampling.precision import fast_math
from safeflux.trainer.sampling.sampler import Condition, Sampler

Losses = Callable[[], torch.Tensor]
"""The losses of a batch, (B,) on the CPU, for the model as it then is: call it under the gates."""
Gated = Callable[[], AbstractContextManager[object]]
"""The model under a batch's gates, without gradients of them."""


class Knowledge:
    """Batches of single steps from noised pictures."""

    def __init__(
        self,
        config: TrainConfig,
        transformer: torch.nn.Module,
        sampler: Sampler,
        erase: Sequence[References],
        preserve: References,
    ) -> None:
        """Take what the run has; `erase` and `preserve` as in `Objective`."""
        self._config, self._transformer, self._sampler = config, transformer, sampler
        self._erase, self._preserve = erase, preserve
        self._device = next(transformer.parameters()).device
        self._bank = Bank(erase, preserve, config.noised, config.seed) if config.erase_terms.bank else None

    def erase(self, term: Term, category: int, indices: list[int], rng: np.random.Generator, under: Gated) -> Losses:
        """How much of the pictures of some pairs is known by a term's conditions: 1 all, 0 nothing."""
        pool = self._erase[category]
        sample, own = noised(pool, indices, self._config.noised, rng, self._device), pool.condition(indices)
        base = self._base_error(sample, own)

        def error(condition: Condition) -> torch.Tensor:
            return sample.error(sample.velocity(self._transformer, self._sampler, condition))

        if term == "bank":
            assert self._bank is not None
            rows = self._bank.rows(category, pool, indices, rng)
            with under():
                self._bank.attack(rows, own, lambda condition: (error(condition) / base).log().sum())
            condition = self._bank.condition(rows, own)
        else:
            condition = self._condition(term, pool, indices, rng)
        return lambda: known(error(condition), base, self._config.noised.ceiling).cpu()

    def error(self, category: int, indices: list[int], rng: np.random.Generator) -> Losses:
        """What whoever trains on pictures of some pairs lowers: the logarithm of the error, by their own prompts."""
        pool = self._erase[category]
        sample, own = noised(pool, indices, self._config.noised, rng, self._device), pool.condition(indices)
        return lambda: sample.error(sample.velocity(self._transformer, self._sampler, own)).log().cpu()

    def preserve(
        self, term: Term, indices: list[int], rng: np.random.Generator
    ) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        """The velocities for some prompts to preserve, and the base model's, by a term's conditions: (B, N, C) each."""
        sample = noised(self._preserve, indices, self._config.noised, rng, self._device)
        condition = self._condition(term, self._preserve, indices, rng)
        with torch.no_grad(), fast_math(self._device, self._sampler.compute_dtype):
            base = sample.velocity(self._transformer, self._sampler, condition).cpu()
        return lambda: (sample.velocity(self._transformer, self._sampler, condition).cpu(), base)

    def settle(self, processes: Processes) -> None:
        """Share what changed in a round with all processes."""
        if self._bank:
            self._bank.settle(processes)

    def state_dict(self) -> list[torch.Tensor | None]:
        """For a checkpoint."""
        return self._bank.state_dict() if self._bank else []

    def load_state_dict(self, state: list[torch.Tensor | None]) -> None:
        """The reverse of `state_dict`."""
        if self._bank:
            self._bank.load_state_dict(state)

    def _base_error(self, sample: Sample, own: Condition) -> torch.Tensor:
        with torch.no_grad(), fast_math(self._device, self._sampler.compute_dtype):
            return sample.error(sample.velocity(self._transformer, self._sampler, own))

    def _condition(self, term: Term, pool: References, indices: list[int], rng: np.random.Generator) -> Condition:
        own = pool.condition(indices)
        if term == "own":
            return own
        every = self._preserve.pairs
        others = [every[int(k)].prompt for k in rng.integers(len(every), size=len(indices))]
        return pool.encoded.other([""] * len(indices) if term == "empty" else others, own)
