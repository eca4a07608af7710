"""The end-to-end losses of a run, one batch at a time, with the gradient by every bit.

The masks of several categories are combined by AND, which for gates is a product. Each batch has a random subset of
the categories' masks on: a mask must erase alone and beside any others, and the prompts to preserve must survive any
subset. With z_c the gates of category c and S the subset, the model sees the product of z_c over S, and
    dL/dz_c = dL/d(product) * product of the others in S,
so that one backward pass serves every category of the subset. With parts (`many.parts`) each part of a batch has a
subset of its own, and all are one forward and one backward pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.erasure import TERMS
from safeflux.trainer.objective.batches import (
    Drawn,
    Slope,
    Stream,
    descended,
    draw_subset,
    draw_term,
    drawn_uniformly,
    in_parts,
    product,
    reopened,
    rng_of,
)
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.gating import GatedModel, Gates
from safeflux.trainer.objective.hardness import Hardness
from safeflux.trainer.objective.knowledge import Knowledge
from safeflux.trainer.objective.losses import distance, erase_loss, standing_out
from safeflux.trainer.objective.references import References
from safeflux.trainer.objective.vectors import IN_MEMORY, Vectors
from safeflux.trainer.processes import Processes
from safeflux.trainer.sampling.precision import fast_math
from safeflux.trainer.sampling.rollout import rollout
from safeflux.trainer.sampling.sampler import Sampler

FADING = 0.8
"""How much of what was known of pictures is carried over when a batch asks again."""


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
        vectors: Vectors = IN_MEMORY,
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
            vectors: Makes the gradients.
        """
        self._config, self._bits, self._names = config, bits, tuple(names)
        self._transformer, self._sampler = transformer, sampler
        self._model = GatedModel(transformer, bits, vectors)
        self._device = next(transformer.parameters()).device
        self._erase, self._preserve = list(erase), preserve
        self.variance = float(self._preserve.target.var(dim=0).mean())
        is_relative = config.preserve_loss == "relative"
        self._scale = standing_out(preserve.target) if is_relative else torch.ones(len(preserve.pairs))
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
        drawn = self._draw_erase(round_, batch, category, self._config.batch)
        mask = reopened(product(gates, drawn.subset), self._config.noised, drawn.rng)
        mask = self._tuned(mask, category, drawn)
        measure = (
            partial(self._left_by_name, drawn)
            if drawn.term == "named"
            else self.knowledge.erase(
                drawn.term, category, drawn.indices, drawn.rng, lambda: self._gated(mask, learns=False)
            )
        )
        with self._gated(mask) as gated:
            losses = measure()
            gradient = gated.gradient(losses.mean())
        return self._erased(category, drawn, losses.detach(), gradient)

    def erase_each(self, round_: int, asked: Sequence[tuple[int, int]], gates: torch.Tensor) -> Iterator[Slope]:
        """`erase` for each (batch, category) that is asked for; with parts, each is a part of a batch."""
        parts = self._config.many.parts
        if parts == 1:
            yield from (self.erase(round_, batch, category, gates) for batch, category in asked)
            return
        size = self._config.batch // parts
        for some in in_parts(asked, parts):
            drawn = [self._draw_erase(round_, batch, category, size) for batch, category in some]
            with self._gated(torch.stack([product(gates, one.subset) for one in drawn])) as gated:
                output = self._outputs(drawn).split(size)
                losses = [self._left(one, part) for one, part in zip(drawn, output, strict=True)]
                gradients = gated.gradient(torch.stack(losses).mean(dim=1).sum())
            for (_, category), one, left, gradient in zip(some, drawn, losses, gradients, strict=True):
                yield self._erased(category, one, left.detach(), gradient)

    def preserve(self, round_: int, batch: int, gates: torch.Tensor) -> Slope:
        """The masked output for prompts to preserve against the base output; with the gradient of a projection.

        Whatever was spoilt when it was last seen is drawn more often: prompts, for each mask that is on alone and for
        several, and masks. The reported loss is that of prompts drawn uniformly.
        """
        drawn = self._draw_preserve(round_, batch, self._config.batch)
        outputs = (
            partial(self._by_name, drawn)
            if drawn.term == "named"
            else self.knowledge.preserve(drawn.term, drawn.indices, drawn.rng)
        )
        with self._gated(product(gates, drawn.subset)) as gated:
            output, target = outputs()
            losses = distance(output, target) / self._scale[drawn.indices]
            gradient = gated.gradient(losses.mean(), keep_graph=True)
            projection = gated.gradient(self._projected(drawn, output))
        return self._preserved(drawn, losses.detach(), gradient, projection)

    def preserve_each(self, round_: int, batches: Sequence[int], gates: torch.Tensor) -> Iterator[Slope]:
        """`preserve` for each batch that is asked for; with parts, each is a part of a batch."""
        parts = self._config.many.parts
        if parts == 1:
            yield from (self.preserve(round_, batch, gates) for batch in batches)
            return
        size = self._config.batch // parts
        for some in in_parts(batches, parts):
            drawn = [self._draw_preserve(round_, batch, size) for batch in some]
            with self._gated(torch.stack([product(gates, one.subset) for one in drawn])) as gated:
                output, indices = self._outputs(drawn), [k for one in drawn for k in one.indices]
                losses = (distance(output, self._preserve.target[indices]) / self._scale[indices]).split(size)
                gradients = gated.gradient(torch.stack(losses).mean(dim=1).sum(), keep_graph=True)
                signed = [self._projected(one, part) for one, part in zip(drawn, output.split(size), strict=True)]
                projections = gated.gradient(torch.stack(signed).sum())
            for one, left, *both in zip(drawn, losses, gradients, projections, strict=True):
                yield self._preserved(one, left.detach(), *both)

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

    def _draw_erase(self, round_: int, batch: int, category: int, count: int) -> Drawn:
        rng = self._rng("erase", round_, batch, category)
        subset, pool = draw_subset(rng, category, len(self._names), self._config.many.alone), self._erase[category]
        term = draw_term(self._config.erase_terms, rng)
        state = TERMS.index(term)
        weight = self.hard[category].weights(state, self._config.hard_share)
        indices = pool.draw(rng, count, self._masked(subset), weight)
        return Drawn(subset, pool, indices, weight[indices], term, state, rng)

    def _draw_preserve(self, round_: int, batch: int, count: int) -> Drawn:
        rng, share = self._rng("preserve", round_, batch), self._config.spoilt_share
        rows = self.spoilt.weights_of_states(len(self.hard), share).double()  # a mask that is not learned has no use
        must = int(rng.choice(len(rows), p=(rows / rows.sum()).numpy()))
        subset = draw_subset(rng, must, len(self._names), self._config.many.preserve_alone)
        signs = torch.Generator().manual_seed(int(rng.integers(2**62)))
        state = subset[0] if len(subset) == 1 else len(self._names)
        term = draw_term(self._config.preserve_terms, rng)
        weight = self.spoilt.weights(state, share)
        indices = self._preserve.draw(rng, count, self._masked(subset), weight)
        return Drawn(subset, self._preserve, indices, weight[indices], term, state, rng, signs)

    def _erased(self, category: int, drawn: Drawn, losses: torch.Tensor, gradient: torch.Tensor) -> Slope:
        """Note what was left, (B,), for the next round."""
        is_share = self._is_relative or drawn.term != "named"
        change = torch.ones(len(losses)) if is_share else drawn.pool.change[drawn.indices]
        loss = drawn_uniformly(losses, drawn.weight)
        self._seen.append((category, drawn.state, drawn.indices, (losses / change).tolist()))
        self._levels_seen.append((category, drawn.state, loss))
        return Slope(loss, drawn.subset, gradient)

    def _preserved(self, drawn: Drawn, losses: torch.Tensor, gradient: torch.Tensor, projection: torch.Tensor) -> Slope:
        """Note what was spoilt, (B,), for the next round."""
        if drawn.term == "named":
            self._seen.append((len(self.hard), drawn.state, drawn.indices, losses.tolist()))
        return Slope(drawn_uniformly(losses, drawn.weight), drawn.subset, gradient, projection)

    def _left_by_name(self, drawn: Drawn) -> torch.Tensor:
        """The erasure loss of whole pictures by the pairs' prompts, (B,)."""
        return self._left(drawn, self._outputs([drawn]))

    def _left(self, drawn: Drawn, output: torch.Tensor) -> torch.Tensor:
        """The same for pictures that are drawn already, (B, N, C)."""
        change = drawn.pool.change[drawn.indices] if self._is_relative else torch.ones(len(output))
        return erase_loss(output, drawn.pool.target[drawn.indices], change)

    def _projected(self, drawn: Drawn, output: torch.Tensor) -> torch.Tensor:
        """A random projection of a batch to preserve, whose square estimates the curvature of its loss."""
        return drawn.projected(output / self._scale[drawn.indices].sqrt()[:, None, None])

    def _by_name(self, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs for prompts to preserve, and the base model's."""
        return self._outputs([drawn]), self._preserve.target[drawn.indices]

    def _tuned(self, gates: torch.Tensor, category: int, drawn: Drawn) -> torch.Tensor:
        """The gates after a step of fine-tuning on other pictures of the category, in a part of the batches."""
        config = self._config.noised
        if not config.tuned or gates.dtype != torch.bool or drawn.rng.random() >= config.tuned:
            return gates
        indices = drawn.pool.draw(drawn.rng, len(drawn.indices), self._masked(drawn.subset))
        error = self.knowledge.error(category, indices, drawn.rng)
        with self._gated(gates) as gated:
            return descended(gates, gated.gradient(error().mean()), config.tuned_rate)

    def _outputs(self, parts: Sequence[Drawn]) -> torch.Tensor:
        """The outputs for the prompts of some parts of a batch, on the CPU."""
        noise = torch.cat([one.pool.noise[one.indices] for one in parts]).to(self._device)
        condition = parts[0].pool.encoded.prompts([one.pool.pairs[k] for one in parts for k in one.indices])
        output = rollout(self._transformer, self._sampler, noise, condition, recompute=self._config.recompute)
        return output.cpu()

    def _rng(self, stream: Stream, *where: int) -> np.random.Generator:
        return rng_of(self._config.seed, stream, *where)
