"""Choose bits by their worth at the current masks, from the end-to-end loss: its gradients, and a price."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from safeflux.trainer.asked.many import ManyConfig
from safeflux.trainer.asked.methods import SaliencyConfig
from safeflux.trainer.methods.base import Task
from safeflux.trainer.methods.estimates import PARTS, Smoothed, Sums, share_out, urgency
from safeflux.trainer.methods.selection import exchange_
from safeflux.trainer.objective.batches import Slope
from safeflux.trainer.objective.vectors import pieces

BETA_START = 8.0
"""Where `beta: auto` starts."""
BETA_STEP = 0.2
"""Rate of the dual ascent on log beta: a budget missed by its own size raises beta by this much."""
BETA_BOUNDS = (1.0, 100.0)
SMOOTHING, PRICE_SMOOTHING = 0.85, 0.9
"""How much of a round's gradients is carried over from the rounds before; and of the second-order price, which is
noisier and changes less from round to round."""
SPOILT_SMOOTHING = 0.7
"""How much of the preservation loss that beta heeds is carried over: one spoilt picture among a round's few counts for
too much."""


class SaliencyMethod:
    """Rounds that switch more bits off than on until a category is gone, and as many on as off from then on.

    The last rounds switch fewer and fewer bits, so that the masks settle.

    Attributes:
        masks: True = keep; bool (categories, bits). The last rows may be masks that stay as they are.
        beta: Weight of preservation beside erasure.
    """

    def __init__(self, config: SaliencyConfig, task: Task, many: ManyConfig | None = None) -> None:
        self._config, self._task, self._many, self.masks = config, task, many or ManyConfig(), task.masks
        smoothing = dict.fromkeys(PARTS, SMOOTHING) | {"price": PRICE_SMOOTHING}
        self._kept = task.masks.shape[1] if task.places is None else len(task.places)
        self._estimates = [Smoothed(self._kept, smoothing, task.vectors) for _ in range(task.trained)]
        self.beta = BETA_START if config.beta == "auto" else config.beta
        self._left, self._spoilt = torch.ones(task.trained), torch.zeros(())
        self._rounds = self._last = 0

    @property
    def most(self) -> int:
        """Rounds at most."""
        return self._config.rounds + self._config.last_rounds

    def worth(self, category: int) -> torch.Tensor:
        """The worth of switching off each bit of a category at the current masks; float32 (bits,)."""
        worth = self._worth_of(category)
        if self._task.places is None:
            return worth
        whole = self._task.vectors.zeros(self.masks.shape[1])
        whole[self._task.places] = worth
        return whole

    def _worth_of(self, category: int) -> torch.Tensor:
        """The same for the bits that estimates are kept of."""
        beta = float((self.beta / urgency(self._left, self._config.balance))[category])
        worth = self._estimates[category].worth(beta, self._config.price_floor)
        for piece, may in pieces(worth, self._at(self._task.may[category])):
            piece *= may
        return worth

    def phase(self, is_erased: Sequence[bool]) -> str | None:
        """`saliency`, `exchange`, or None when all is done."""
        if not all(is_erased) and self._rounds < self._config.rounds:
            return "saliency"
        return "exchange" if self._last < self._config.last_rounds else None

    def advance(self, round_: int, is_erased: Sequence[bool]) -> tuple[float, float]:
        """One round; returns the mean erasure and preservation loss before its switches."""
        losses = self._estimate(round_)
        if self.phase(is_erased) == "exchange":
            off = on = round(self._config.bits_on * (1 - self._last / self._config.last_rounds))
            self._last += 1
        else:
            off, on = self._config.bits_off, self._config.bits_on
            self._rounds += 1
        if self._rounds <= self._config.warm_up:
            return losses  # beta rests too: a budget missed while nothing is switched would only wind it up
        self._tune_beta(losses[1])
        for k in range(self._task.trained):
            is_enough = is_erased[k] or self._left[k] <= self._many.enough
            keep = exchange_(self._at(self.masks[k]), self._worth_of(k), off=min(off, on) if is_enough else off, on=on)
            if self._task.places is not None:
                self.masks[k, self._task.places] = keep
        return losses

    def _tune_beta(self, preserve: float) -> None:
        if self._config.beta == "auto":
            self._spoilt.mul_(SPOILT_SMOOTHING).add_(preserve, alpha=1 - SPOILT_SMOOTHING)
            missed = self._spoilt.item() / (self._config.preserve_budget * self._task.objective.variance) - 1
            low, high = BETA_BOUNDS
            self.beta = min(high, max(low, self.beta * math.exp(BETA_STEP * min(missed, 2.0))))

    def _estimate(self, round_: int) -> tuple[float, float]:
        """Blend one round's estimates in."""
        chosen, processes, objective = self._config, self._task.processes, self._task.objective
        counts = share_out(chosen.erase_batches * self._task.trained, self._left)
        asked = [(processes.batch(k), category) for category, count in enumerate(counts) for k in range(count)]
        losses: list[list[float]] = [[] for _ in counts]
        with self._blended("erase", *(["undo"] if self._task.trained > 1 else [])) as sums:
            for (_, category), slope in zip(asked, objective.erase_each(round_, asked, self.masks), strict=True):
                losses[category].append(slope.loss)
                self._add_erased(slope, category, sums)
        erased = [processes.mean(some) for some in losses]
        batches = [processes.batch(k) for k in range(chosen.preserve_batches)]
        with self._blended("preserve", "price") as sums:
            slopes = objective.preserve_each(round_, batches, self.masks)
            kept = list(map(partial(self._add_kept, sums=sums), slopes))  # which lets go of each before the next
        objective.settle(processes)
        self._left.mul_(SMOOTHING).add_(torch.tensor(erased), alpha=1 - SMOOTHING)
        return sum(erased) / len(erased), processes.mean(kept)

    @contextmanager
    def _blended(self, *parts: str) -> Iterator[dict[str, Sums]]:
        """Sums for the batches of a block; their means over all processes are blended in after it."""
        sums = {part: Sums(self._task.trained, self._kept, self._task.vectors) for part in parts}
        yield sums
        for part, total in sums.items():
            for category, mean in total.means(self._task.processes):
                self._estimates[category].update(part, mean)

    def _add_erased(self, slope: Slope, category: int, sums: Mapping[str, Sums]) -> None:
        """A batch serves its category; to the other masks that are on it shows bits that would bring it back."""
        of_row = {row: sums["erase" if row == category else "undo"] for row in self._learned(slope)}
        self._add(slope, (slope.gradient, of_row))

    def _add_kept(self, slope: Slope, sums: Mapping[str, Sums]) -> float:
        """A batch serves every category whose mask is on in it; returns its loss."""
        assert slope.projection is not None
        rows = self._learned(slope)
        gradient = slope.gradient, dict.fromkeys(rows, sums["preserve"])
        self._add(slope, gradient, (slope.projection.square_(), dict.fromkeys(rows, sums["price"])))
        return slope.loss

    def _learned(self, slope: Slope) -> list[int]:
        return [row for row in slope.subset if row < self._task.trained]

    def _add(self, slope: Slope, *parts: tuple[torch.Tensor, Mapping[int, Sums]]) -> None:
        """Add values by the AND of a batch's masks, (bits,), to the sums of the learned rows that were on."""
        start = 0
        for gates, *values in pieces(self._at(self.masks), *(self._at(whole) for whole, _ in parts)):
            for row, others in slope.others(gates):
                for piece, (_, sums) in zip(values, parts, strict=True):
                    if row in sums:
                        sums[row].add(row, start, piece * others)
            start += gates.shape[-1]
        for _, sums in parts:
            for row, one in sums.items():
                one.count(row)

    def _at(self, vector: torch.Tensor) -> torch.Tensor:
        """The bits that estimates are kept of: the vector itself, (..., bits), or a copy of some."""
        return vector if self._task.places is None else vector[..., self._task.places]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "masks": self.masks,
            "estimates": [estimates.state_dict() for estimates in self._estimates],
            "beta": self.beta,
            "left": self._left,
            "spoilt": self._spoilt,
            "rounds": self._rounds,
            "last": self._last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.masks.copy_(state["masks"])
        self.beta = state["beta"]
        self._left, self._spoilt = state["left"].clone(), state["spoilt"].clone()
        for estimates, saved in zip(self._estimates, state["estimates"], strict=True):
            estimates.load_state_dict(saved)
        self._rounds, self._last = state["rounds"], state["last"]
