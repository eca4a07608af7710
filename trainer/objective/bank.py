"""Embeddings that are kept adversarial to the masks: what a prompt of free numbers would still bring back.

They persist over the rounds, and each takes some steps against the masks as they stand before a batch uses it (after
the bank of STEREO, arXiv 2408.16807, and the soft prompts of textual inversion). A step moves every number by the sign
of its gradient, which needs no state beside the embeddings. Some start anew now and then, so that they do not all
stay in one place. Shapes as in `sampler`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from safeflux.trainer.asked.erasure import NoisedConfig
from safeflux.trainer.objective.references import References
from safeflux.trainer.processes import Processes
from safeflux.trainer.sampling.sampler import Condition

Loss = Callable[[Condition], torch.Tensor]
"""A scalar for the conditions of a batch: small where they bring the thing back."""


class Bank:
    """Some embeddings for every concept of every category."""

    def __init__(self, erase: Sequence[References], preserve: References, config: NoisedConfig, seed: int) -> None:
        """Start each from a prompt to preserve.

        Args:
            erase: The pairs of each category.
            preserve: Whose prompts they start from.
            config: How many there are, and how they move.
            seed: Draws these prompts.
        """
        self._config, self._preserve = config, preserve
        concepts = dict.fromkeys((k, pair.concept) for k, pool in enumerate(erase) for pair in pool.pairs)
        self._first = {key: n * config.bank_size for n, key in enumerate(concepts)}
        start = self._some(np.random.default_rng(seed), len(concepts) * config.bank_size)
        self._tokens, self._pooled = start.tokens.clone(), None if start.pooled is None else start.pooled.clone()
        everything = preserve.encoded.condition
        self._scale = [_rms(part) for part in (everything.tokens, everything.pooled) if part is not None]
        self._moved: set[int] = set()

    def rows(self, category: int, pool: References, indices: Sequence[int], rng: np.random.Generator) -> list[int]:
        """One embedding of the right concept for each pair; some start anew."""
        concepts = [pool.pairs[k].concept for k in indices]
        offsets = rng.integers(self._config.bank_size, size=len(indices))
        rows = [self._first[category, concept] + int(k) for concept, k in zip(concepts, offsets, strict=True)]
        anew = [row for row in dict.fromkeys(rows) if rng.random() < self._config.bank_reset]
        if anew:
            self._put(anew, self._some(rng, len(anew)))
        return rows

    def condition(self, rows: Sequence[int], like: Condition) -> Condition:
        """The conditions of some embeddings, on the device and with the images of others."""
        tokens = self._tokens[rows].to(like.tokens)
        pooled = None if self._pooled is None or like.pooled is None else self._pooled[rows].to(like.pooled)
        return replace(like, tokens=tokens, pooled=pooled)

    def attack(self, rows: Sequence[int], like: Condition, loss: Loss) -> None:
        """Let some embeddings take their steps down a loss; one that stands for several pairs follows their sum."""
        unique = list(dict.fromkeys(rows))
        place = torch.tensor([unique.index(row) for row in rows])
        for _ in range(self._config.bank_steps):
            one = self.condition(unique, like)
            leaves = [part.detach().requires_grad_() for part in (one.tokens, one.pooled) if part is not None]
            spread = [leaf[place.to(leaf.device)] for leaf in leaves]
            value = loss(replace(like, tokens=spread[0], pooled=spread[1] if len(spread) > 1 else None))
            gradients = torch.autograd.grad(value, leaves)
            moved = [
                leaf.detach() - self._config.bank_rate * scale * gradient.sign()
                for leaf, gradient, scale in zip(leaves, gradients, self._scale, strict=True)
            ]
            self._put(unique, replace(one, tokens=moved[0], pooled=moved[1] if len(moved) > 1 else None))

    def settle(self, processes: Processes) -> None:
        """Take over what other processes moved; the last of several wins."""
        mine = sorted(self._moved)
        moved = [(row, self._tokens[row], None if self._pooled is None else self._pooled[row]) for row in mine]
        for row, tokens, pooled in processes.gather(moved):
            self._tokens[row] = tokens
            if self._pooled is not None and pooled is not None:
                self._pooled[row] = pooled
        self._moved = set()

    def state_dict(self) -> list[torch.Tensor | None]:
        """For a checkpoint."""
        return [self._tokens, self._pooled]

    def load_state_dict(self, state: list[torch.Tensor | None]) -> None:
        """The reverse of `state_dict`."""
        tokens, self._pooled = state
        assert tokens is not None
        self._tokens = tokens

    def _some(self, rng: np.random.Generator, count: int) -> Condition:
        return self._preserve.condition(rng.integers(len(self._preserve.pairs), size=count).tolist())

    def _put(self, rows: Sequence[int], condition: Condition) -> None:
        self._moved.update(rows)
        self._tokens[list(rows)] = condition.tokens.to(self._tokens)
        if self._pooled is not None and condition.pooled is not None:
            self._pooled[list(rows)] = condition.pooled.to(self._pooled)


def _rms(values: torch.Tensor) -> float:
    return float(values.float().square().mean().sqrt())
