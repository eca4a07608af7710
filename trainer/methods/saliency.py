"""Choose bits by their worth at the current masks, from the end-to-end loss: its gradients, and a price."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from safeflux.trainer.asked.config import SaliencyConfig
from safeflux.trainer.asked.many import ManyConfig
from safeflux.trainer.methods.base import Task
from safeflux.trainer.methods.estimates import PARTS, Smoothed, Sums, share_out, urgency
from safeflux.trainer.methods.selection import exchange
from safeflux.trainer.objective.batches import Slope

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
        self._places = slice(None) if task.places is None else task.places
        smoothing = dict.fromkeys(PARTS, SMOOTHING) | {"price": PRICE_SMOOTHING}
        self._kept = task.masks.shape[1] if task.places is None else len(task.places)
        self._estimates = [Smoothed(self._kept, smoothing) for _ in range(task.trained)]
        self.beta = BETA_START if config.beta == "auto" else config.beta
        self._left, self._spoilt = torch.ones(task.trained), torch.zeros(())
        self._rounds = self._last = 0

    @property
    def most(self) -> int:
        """Rounds at most."""
        return self._config.rounds + self._config.last_rounds

    def worth(self) -> torch.Tensor:
        """The worth of switching each bit off at the current masks; float32 (trained categories, bits)."""
        worth = torch.zeros(self._task.may.shape)
        for k in range(self._task.trained):
            worth[k, self._places] = self._worth_of(k)
        return worth

    def _worth_of(self, category: int) -> torch.Tensor:
        """The same for one category and the bits that estimates are kept of."""
        beta = float((self.beta / urgency(self._left, self._config.balance))[category])
        worth = self._estimates[category].value.worth(beta, self._config.price_floor)
        return worth * self._task.may[category, self._places]

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
            before = self.masks[k, self._places]
            self.masks[k, self._places] = exchange(
                before, self._worth_of(k), off=min(off, on) if is_enough else off, on=on
            )
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
        sums = {part: Sums(self._task.trained, self._kept) for part in PARTS}
        counts = share_out(chosen.erase_batches * self._task.trained, self._left)
        asked = [(processes.batch(k), category) for category, count in enumerate(counts) for k in range(count)]
        losses: list[list[float]] = [[] for _ in counts]
        for (_, category), slope in zip(asked, objective.erase_each(round_, asked, self.masks), strict=True):
            losses[category].append(slope.loss)
            self._add_erased(slope, category, sums)
        erased = [processes.mean(some) for some in losses]
        batches = [processes.batch(k) for k in range(chosen.preserve_batches)]
        kept = [self._add_kept(slope, sums) for slope in objective.preserve_each(round_, batches, self.masks)]
        for part, total in sums.items():
            for category, mean in total.means(processes).items():
                self._estimates[category].update(**{part: mean})
        objective.settle(processes)
        self._left.mul_(SMOOTHING).add_(torch.tensor(erased), alpha=1 - SMOOTHING)
        return sum(erased) / len(erased), processes.mean(kept)

    def _add_erased(self, slope: Slope, category: int, sums: Mapping[str, Sums]) -> None:
        """A batch serves its category; to the other masks that are on it shows bits that would bring it back."""
        for row, gradient, _ in self._learned(slope):
            sums["erase" if row == category else "undo"].add(row, gradient)

    def _add_kept(self, slope: Slope, sums: Mapping[str, Sums]) -> float:
        """A batch serves every category whose mask is on in it; returns its loss."""
        for row, gradient, price in self._learned(slope):
            sums["preserve"].add(row, gradient)
            sums["price"].add(row, price)
        return slope.loss

    def _learned(self, slope: Slope) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """The learned rows that were on: each with its gradient and, of a batch to preserve, its price."""
        part = slope.at(self._places)
        squared = part.gradient if part.projection is None else part.projection.square()
        for row, others in part.others(self.masks[:, self._places]):
            if row < self._task.trained:
                yield row, part.gradient * others, squared * others

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
        self.masks, self.beta = state["masks"], state["beta"]
        self._left, self._spoilt = state["left"], state["spoilt"]
        for estimates, saved in zip(self._estimates, state["estimates"], strict=True):
            estimates.load_state_dict(saved)
        self._rounds, self._last = state["rounds"], state["last"]
