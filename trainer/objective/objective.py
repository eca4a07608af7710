"""The end-to-end losses of a run, one batch at a time, with the gradient by every bit.

The masks of several categories are combined by AND, which for gates is a product. Each batch has a random subset of
the categories' masks on: a mask must erase alone and beside any others, and the prompts to preserve must survive any
subset. With z_c the gates of category c and S the subset, the model sees the product of z_c over S, and
    dL/dz_c = dL/d(product) * product of the others in S,
so that one backward pass serves every category of the subset.

All randomness comes from (seed, round, batch): a batch is the same in every process and after a restart.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.erasure import TERMS, Term, TermConfig
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.gating import GatedModel, Gates
from safeflux.trainer.objective.hardness import Hardness
from safeflux.trainer.objective.knowledge import Knowledge
from safeflux.trainer.objective.losses import distance, erase_loss, random_projection
from safeflux.trainer.objective.references import References
from safeflux.trainer.processes import Processes
from safeflux.trainer.sampling.precision import fast_math
from safeflux.trainer.sampling.rollout import rollout
from safeflux.trainer.sampling.sampler import Sampler

Stream = Literal["erase", "preserve", "gates", "pairs"]
_STREAMS: tuple[Stream, ...] = ("erase", "preserve", "gates", "pairs")
FADING = 0.8
"""How much of what was known of pictures is carried over when a batch asks again."""
_ALONE, _ALL = 0.5, 0.75
"""Shares of the batches (cumulative) with one mask on and with all on; the others have a random number of them on. A
batch with one mask on serves that one alone, so that a mask would otherwise hardly be seen without others."""


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
    out = torch.ones(gates.shape[1], dtype=gates.dtype)
    for row in rows:
        out = out & gates[row] if out.dtype == torch.bool else out * gates[row]
    return out


class Objective:
    """Erasure and preservation, over the final output of the whole sampler, for gates of shape (categories, bits).

    Attributes:
        variance: Variance of the base model's outputs over the prompts to preserve, which is the unit of a budget.
        hard: For each category, by each term, how much was left of each erase pair when it was last seen: 1 all, 0
            nothing.
        knowledge: The terms that start from noised pictures.
        spoilt: For each mask alone, and for several, how much each prompt to preserve was spoilt when last seen.
    """

    def __init__(
        self,
        config: TrainConfig,
        transformer: torch.nn.Module,
        sampler: Sampler,
        bits: Bits,
        names: Sequence[str],
        erase: Sequence[References],
        preserve: References,
    ) -> None:
        """Take the references that `prepare.prepare` made; nothing is drawn here.

        Args:
            config: The run.
            transformer: The base model, without masks.
            sampler: The schedule of the run.
            bits: The bits that may be masked.
            names: The category of each row of gates; those of the configuration first.
            erase: The pairs of each category of the configuration, with the outputs of the base model.
            preserve: The same for the prompts to preserve.
        """
        self._config, self._bits, self._names = config, bits, tuple(names)
        self._transformer, self._sampler = transformer, sampler
        self._model = GatedModel(transformer, bits)
        self._device = next(transformer.parameters()).device
        self._erase, self._preserve = list(erase), preserve
        self.variance = float(self._preserve.target.var(dim=0).mean())
        self.hard = [Hardness(len(TERMS), len(pool.pairs), start=1.0) for pool in self._erase]
        self.spoilt = Hardness(len(names) + 1, len(self._preserve.pairs))
        self.knowledge = Knowledge(config, transformer, sampler, self._erase, preserve)
        self._seen: list[tuple[int, int, list[int], list[float]]] = []
        self._levels = torch.ones(len(self._erase), len(TERMS))
        self._levels_seen: list[tuple[int, int, float]] = []

    def erase(self, round_: int, batch: int, category: int, gates: torch.Tensor) -> Slope:
        """What is left of a category's concepts: by name against the base output for their anchors, or by pictures.

        A part of the batch is drawn by how much was left of each pair when it was last seen. The gradient is of the
        batch as it was drawn; the reported loss is that of pairs drawn uniformly, so that rounds can be compared.
        """
        rng = self._rng("erase", round_, batch, category)
        subset, pool = self._subset(rng, category), self._erase[category]
        term = _drawn_term(self._config.erase_terms, rng)
        state = TERMS.index(term)
        weight = self.hard[category].weights(state, self._config.hard_share)
        indices = pool.draw(rng, self._config.batch, self._masked(subset), weight)
        product = self._reopened(_product(gates, subset), rng)
        measure = (
            partial(self._left_by_name, pool, indices)
            if term == "named"
            else self.knowledge.erase(term, category, indices, rng, lambda: self._gated(product, learns=False))
        )
        with self._gated(product) as gated:
            losses = measure()
            gradient = gated.gradient(losses.mean())
        change = torch.ones(len(indices)) if self._is_relative or term != "named" else pool.change[indices]
        loss = _drawn_uniformly(losses, weight[indices])
        self._seen.append((category, state, indices, (losses.detach() / change).tolist()))
        self._levels_seen.append((category, state, loss))
        return Slope(loss, subset, gradient)

    def preserve(self, round_: int, batch: int, gates: torch.Tensor) -> Slope:
        """The masked output for prompts to preserve against the base output; with the gradient of a projection.

        Whatever was spoilt when it was last seen is drawn more often: prompts, for each mask that is on alone and for
        several, and masks. The reported loss is that of prompts drawn uniformly.
        """
        rng, share = self._rng("preserve", round_, batch), self._config.spoilt_share
        rows = self.spoilt.weights_of_states(len(self.hard), share).double()  # a mask that is not learned has no use
        subset = self._subset(rng, int(rng.choice(len(rows), p=(rows / rows.sum()).numpy())))
        signs = torch.Generator().manual_seed(int(rng.integers(2**62)))
        state = subset[0] if len(subset) == 1 else len(gates)
        term = _drawn_term(self._config.preserve_terms, rng)
        weight = self.spoilt.weights(state, share)
        indices = self._preserve.draw(rng, self._config.batch, self._masked(subset), weight)
        outputs = partial(self._by_name, indices) if term == "named" else self.knowledge.preserve(term, indices, rng)
        with self._gated(_product(gates, subset)) as gated:
            output, target = outputs()
            losses = distance(output, target)
            gradient = gated.gradient(losses.mean(), keep_graph=True)
            projection = gated.gradient(random_projection(output, signs))
        if term == "named":
            self._seen.append((len(self.hard), state, indices, losses.tolist()))
        return Slope(_drawn_uniformly(losses, weight[indices]), subset, gradient, projection)

    def settle(self, processes: Processes) -> None:
        """Note how much was left of the pairs that a round saw, in all processes: the next round draws by it."""
        for pool, state, indices, left in processes.gather(self._seen):
            self._pools[pool].note(state, indices, left)
        for category, state, loss in processes.gather(self._levels_seen):
            level = self._levels[category, state]
            self._levels[category, state] = FADING * level + (1 - FADING) * loss
        self._seen, self._levels_seen = [], []
        self.knowledge.settle(processes)

    def known(self, category: int) -> float:
        """How much of a category's pictures is known by the term that knows most, over the last batches; 1 is all.

        0 for a run whose terms do not start from pictures.
        """
        weights = self._config.erase_terms.weights
        asked = [k for k, term in enumerate(TERMS) if term != "named" and weights[k]]
        return max((float(self._levels[category, k]) for k in asked), default=0.0)

    def state_dict(self) -> dict[str, Any]:
        """How much was left of each pair, and the adversarial embeddings, for a checkpoint."""
        left = [pool.left for pool in self._pools]
        return {"left": left, "levels": self._levels, "knowledge": self.knowledge.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        for pool, left in zip(self._pools, state["left"], strict=True):
            pool.left = left
        self._levels = state["levels"]
        self.knowledge.load_state_dict(state["knowledge"])

    @property
    def _pools(self) -> list[Hardness]:
        """Of the categories' pairs, and of those to preserve."""
        return [*self.hard, self.spoilt]

    def generator(self, round_: int, batch: int) -> torch.Generator:
        """For the gates that a method draws."""
        return torch.Generator().manual_seed(int(self._rng("gates", round_, batch).integers(2**62)))

    def _masked(self, subset: tuple[int, ...]) -> frozenset[str]:
        return frozenset(self._names[k] for k in subset)

    @contextmanager
    def _gated(self, gates: torch.Tensor, *, learns: bool = True) -> Iterator[Gates]:
        """The model under gates, in the dtype of the run."""
        with self._model.under(gates, learns=learns) as gated, fast_math(self._device, self._sampler.compute_dtype):
            yield gated

    @property
    def _is_relative(self) -> bool:
        return self._config.erase_loss == "relative"

    def _left_by_name(self, pool: References, indices: list[int]) -> torch.Tensor:
        """The erasure loss of whole pictures by the pairs' prompts, (B,)."""
        change = pool.change[indices] if self._is_relative else torch.ones(len(indices))
        return erase_loss(self._output(pool, indices), pool.target[indices], change)

    def _by_name(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs for prompts to preserve, and the base model's."""
        return self._output(self._preserve, indices), self._preserve.target[indices]

    def _reopened(self, gates: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """The gates with some closed bits open, in a part of the batches."""
        config = self._config.noised
        if not config.reopened or gates.dtype != torch.bool or rng.random() >= config.reopened_batches:
            return gates
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return gates | (torch.rand(gates.shape, generator=generator) < config.reopened)

    def _output(self, pool: References, indices: list[int]) -> torch.Tensor:
        """The output for some pairs' prompts, on the CPU."""
        noise, condition = pool.noise[indices].to(self._device), pool.condition(indices)
        output = rollout(self._transformer, self._sampler, noise, condition, recompute=self._config.recompute)
        return output.cpu()

    def _subset(self, rng: np.random.Generator, must: int) -> tuple[int, ...]:
        """The rows whose masks are on: `must`, and none, all or some of the others."""
        others = [k for k in range(len(self._names)) if k != must]
        kind = rng.random()
        count = 0 if kind < _ALONE else len(others) if kind < _ALL else int(rng.integers(len(others) + 1))
        return (must, *sorted(int(k) for k in rng.choice(others, count, replace=False)))

    def _rng(self, stream: Stream, *where: int) -> np.random.Generator:
        return rng_of(self._config.seed, stream, *where)


def rng_of(seed: int, stream: Stream, *where: int) -> np.random.Generator:
    """The random numbers of one purpose at one place of a run with this seed."""
    return np.random.default_rng((seed, _STREAMS.index(stream), *where))


def _drawn_term(config: TermConfig, rng: np.random.Generator) -> Term:
    """What a batch asks; without a choice, no random number is taken."""
    weights = np.array(config.weights) / sum(config.weights)
    return TERMS[int(weights.argmax() if weights.max() == 1 else rng.choice(len(TERMS), p=weights))]


def _drawn_uniformly(losses: torch.Tensor, weight: torch.Tensor) -> float:
    """The mean loss of a batch as if its pairs had been drawn uniformly, (batch,) each: by importance weights."""
    return float(np.average(losses.detach().numpy(), weights=1 / weight.numpy()))
