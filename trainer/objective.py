"""The end-to-end losses of a run, one batch at a time, with the gradient that says what each bit is worth.

The masks of several categories are AND-ed, which for gates is a product. Each batch has a random subset of the
categories' masks on: a mask must erase alone and beside any others, and what is to be preserved must survive any
subset. With z_c the gates of category c and S the subset, the model sees the product of z_c over S, and
    dL/dz_c = dL/d(product) * product of the others in S,
so that one backward pass serves every category of the subset.

All randomness comes from (seed, round, batch): a batch is the same whoever asks for it, and whenever.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from safeflux.trainer.bits import Bits
from safeflux.trainer.config import TrainConfig
from safeflux.trainer.factors import Factors, masked_parameters
from safeflux.trainer.hard import Hardness
from safeflux.trainer.losses import distance, erase_loss, random_projection
from safeflux.trainer.memory import check_memory, estimate_memory
from safeflux.trainer.processes import Processes
from safeflux.trainer.prompts import PromptSource
from safeflux.trainer.references import References, encode_once, make_references
from safeflux.trainer.rollout import fast_math, rollout, sampler_of

_STREAMS = ("erase", "preserve", "gates", "pairs")
_ALONE, _ALL = 0.5, 0.75
"""Shares of the batches (cumulative) with one mask on and with all on; the others have a random number of them on. A
batch with one mask on serves that one alone, so that a mask would else hardly be seen without others."""


@dataclass(frozen=True)
class Slope:
    """One batch: its loss, the categories whose masks were on, and gradients by the bits of the AND of these masks."""

    loss: float
    subset: tuple[int, ...]
    gradient: torch.Tensor
    """Of the loss; float32 (bits,)."""
    projection: torch.Tensor | None = None
    """Of a random projection of the output, whose square estimates the second order (`random_projection`)."""

    def of(self, category: int, gates: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient by the product as one by the bits of one category of the subset, (bits,)."""
        return gradient * _product(gates, [k for k in self.subset if k != category])


def _product(gates: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """The product of some rows; for bool rows their AND. Ones for no rows."""
    out = torch.ones(gates.shape[1])
    for row in rows:
        out *= gates[row]
    return out


class Objective:
    """Erasure and preservation, over the final output of the whole sampler, for gates of shape (categories, bits).

    Attributes:
        variance: Variance of the base model's outputs over the prompts to preserve, which is the unit of a budget.
        left: For each category, what was left of each erase pair when it was last seen, (pairs,): 1 all, 0 nothing.
    """

    def __init__(
        self,
        config: TrainConfig,
        pipe: Any,
        bits: Bits,
        names: Sequence[str],
        drawn: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Let the base model draw all that the run compares with.

        Args:
            config: The run.
            pipe: The pipeline, without masks.
            bits: What may be masked.
            names: The category of each row of gates; those of the configuration first.
            drawn: Called with how many of how many outputs there are, for a progress bar.

        Raises:
            TrainError: The run needs more memory than there is.
        """
        self._config, self._bits, self._names = config, bits, tuple(names)
        self._transformer = pipe.transformer
        self._device = next(pipe.transformer.parameters()).device
        self._sampler = sampler_of(
            pipe, steps=config.steps, height=config.height, width=config.width, guidance=config.guidance
        )
        self._erase, self._preserve = self._references(pipe, drawn)
        self.variance = float(self._preserve.target.var(dim=0).mean())
        self.hard = [Hardness(1, len(pool.pairs), start=1.0) for pool in self._erase]
        self.spoilt = Hardness(len(names) + 1, len(self._preserve.pairs))
        self._seen: list[tuple[int, int, list[int], list[float]]] = []

    def erase(self, round_: int, batch: int, category: int, gates: torch.Tensor) -> Slope:
        """The masked output for a category's concepts against the base output for their anchors.

        A part of the batch is drawn by how much was left of each pair when it was last seen. The gradient is of the
        batch as it was drawn; the loss that is told is of pairs drawn alike, so that rounds can be compared.
        """
        rng = self._rng("erase", round_, batch, category)
        subset, pool = self._subset(rng, category), self._erase[category]
        weight = self.hard[category].weights(0, self._config.hard_share)
        indices = pool.draw(rng, self._config.batch, self._masked(subset), weight)
        output, factors = self._run(pool, indices, subset, gates)
        is_relative = self._config.erase_loss == "relative"
        change = pool.change[indices] if is_relative else torch.ones(len(indices))
        losses = erase_loss(output, pool.target[indices], change)
        self._seen.append((category, 0, indices, (losses.detach() * change / pool.change[indices]).tolist()))
        return Slope(_drawn_alike(losses, weight[indices]), subset, self._gradient(losses.mean(), factors))

    def preserve(self, round_: int, batch: int, gates: torch.Tensor) -> Slope:
        """The masked output for prompts to preserve against the base output; with the gradient of a projection.

        What was spoilt when it was last seen is drawn more often: prompts, for each mask that is on alone and for
        several, and masks. The loss that is told is of prompts drawn alike.
        """
        rng, share = self._rng("preserve", round_, batch), self._config.spoilt_share
        rows = self.spoilt.weights_of_states(len(self.hard), share).double()  # a mask that is not learned has no use
        subset = self._subset(rng, int(rng.choice(len(rows), p=(rows / rows.sum()).numpy())))
        signs = torch.Generator().manual_seed(int(rng.integers(2**62)))
        state = subset[0] if len(subset) == 1 else len(gates)
        weight = self.spoilt.weights(state, share)
        indices = self._preserve.draw(rng, self._config.batch, self._masked(subset), weight)
        output, factors = self._run(self._preserve, indices, subset, gates)
        losses = distance(output, self._preserve.target[indices])
        self._seen.append((len(self.hard), state, indices, losses.tolist()))
        gradient = self._gradient(losses.mean(), factors, keep_graph=True)
        told = _drawn_alike(losses, weight[indices])
        return Slope(told, subset, gradient, self._gradient(random_projection(output, signs), factors))

    def settle(self, processes: Processes) -> None:
        """Take note of what was left of the pairs that a round saw, in all processes: the next round draws by it."""
        for pool, state, indices, left in processes.gather(self._seen):
            self._pools[pool].note(state, indices, left)
        self._seen = []

    def state_dict(self) -> list[torch.Tensor]:
        """What was left of each pair, for a checkpoint."""
        return [pool.left for pool in self._pools]

    def load_state_dict(self, state: list[torch.Tensor]) -> None:
        """The reverse of `state_dict`."""
        for pool, left in zip(self._pools, state, strict=True):
            pool.left = left

    @property
    def _pools(self) -> list[Hardness]:
        """Of the categories' pairs, and of those to preserve."""
        return [*self.hard, self.spoilt]

    def generator(self, round_: int, batch: int) -> torch.Generator:
        """For the gates that a method draws."""
        return torch.Generator().manual_seed(int(self._rng("gates", round_, batch).integers(2**62)))

    def _masked(self, subset: tuple[int, ...]) -> frozenset[str]:
        return frozenset(self._names[k] for k in subset)

    def _run(
        self, pool: References, indices: list[int], subset: tuple[int, ...], gates: torch.Tensor
    ) -> tuple[torch.Tensor, Factors]:
        """The output for some pairs' prompts under the AND of a subset, and the factors that gradients reach."""
        factors = self._bits.factors(_product(gates, subset))
        parameters = masked_parameters(self._transformer, self._bits.sites, factors)
        noise, condition = pool.noise[indices].to(self._device), pool.condition(indices)
        with fast_math(self._device):
            output = rollout(
                self._transformer, self._sampler, noise, condition, parameters, recompute=self._config.recompute
            )
        return output.cpu(), factors

    def _gradient(self, loss: torch.Tensor, factors: Factors, *, keep_graph: bool = False) -> torch.Tensor:
        with fast_math(self._device):
            gradients = torch.autograd.grad(loss, list(factors.values()), retain_graph=keep_graph)
        return self._bits.join(dict(zip(factors, gradients, strict=True))).cpu()

    def _subset(self, rng: np.random.Generator, must: int) -> tuple[int, ...]:
        """The rows whose masks are on: `must`, and none, all or some of the others."""
        others = [k for k in range(len(self._names)) if k != must]
        kind = rng.random()
        count = 0 if kind < _ALONE else len(others) if kind < _ALL else int(rng.integers(len(others) + 1))
        return (must, *sorted(int(k) for k in rng.choice(others, count, replace=False)))

    def _rng(self, stream: str, *where: int) -> np.random.Generator:
        return np.random.default_rng((self._config.seed, _STREAMS.index(stream), *where))

    def _references(self, pipe: Any, drawn: Callable[[int, int], None]) -> tuple[list[References], References]:
        """Draw the pairs of the whole run, encode them, and let the base model draw its part."""
        chosen, source = self._config, PromptSource(self._config, beside=self._names)
        pools = [
            source.erase(name, self._rng("pairs", k), category.erase_pairs or chosen.prompts.erase_pairs)
            for k, (name, category) in enumerate(chosen.categories.items())
        ]
        pools.append(source.preserve(self._rng("pairs", len(pools)), chosen.prompts.preserve_pairs))
        encoded = encode_once(pipe, [pair for pool in pools for pair in pool], chosen)
        memory = estimate_memory(
            self._transformer,
            self._sampler,
            encoded.prompts(pools[0][:1]),
            chosen,
            self._bits.sites.values(),
            len(self._names),
        )
        check_memory(memory, self._device)
        total, made = sum(map(len, pools)), []
        trajectories = [*(category.trajectory for category in chosen.categories.values()), None]
        for k, pool in enumerate(pools):
            before = sum(map(len, pools[:k]))
            seed, told = int(self._rng("pairs", k, 1).integers(2**62)), partial(_shifted, drawn, before, total)
            made.append(
                make_references(
                    self._transformer,
                    self._sampler,
                    pool,
                    encoded,
                    seed=seed,
                    batch=chosen.batch,
                    trajectory=trajectories[k],
                    drawn=told,
                )
            )
        share = chosen.prompts.drop_share
        return [pool.without_border_changes(share) if share else pool for pool in made[:-1]], made[-1]


def _drawn_alike(losses: torch.Tensor, weight: torch.Tensor) -> float:
    """The mean loss of a batch as if its pairs had been drawn alike, (batch,) each: by importance weights."""
    return float(np.average(losses.detach().numpy(), weights=1 / weight.numpy()))


def _shifted(drawn: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    drawn(before + done, total)


@dataclass(frozen=True)
class Task:
    """What a method of choosing bits works on."""

    objective: Objective
    masks: torch.Tensor
    """Where it starts: True = keep, bool (categories, bits)."""
    trained: int
    """How many of these rows, the first ones, are to be learned; the others stay as they are."""
    may: torch.Tensor
    """Bits of each trained category that can be switched, bool (trained, bits)."""
    processes: Processes
