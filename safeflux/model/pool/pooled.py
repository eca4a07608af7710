"""One policy of a pool in force: what is off, how it is put back, and the switch to another policy of the pool."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NoReturn

import torch

from safeflux.errors import ApplyError
from safeflux.masks.mask_set import MaskSet
from safeflux.model.apply import Undo, fill_and_check_, restore_
from safeflux.model.commit import Commit, carry_out_
from safeflux.model.forward_values import Values
from safeflux.model.index_sets import Elements
from safeflux.model.pool.layers import Layers, check_put_back
from safeflux.model.weights import check_reached
from safeflux.model.writes import masked
from safeflux.plan.resolve import Plan


class Pooled(Undo):
    """What a policy of a pool switches off: its layers, which it shares with the pool's other policies."""

    def __init__(self, transformer: torch.nn.Module, plan: Plan, layers: Layers, name: str) -> None:
        """Take a policy's layers.

        Args:
            transformer: The model.
            plan: What the policy asks for.
            layers: Those of all policies of the pool.
            name: The policy's name in the pool.
        """
        super().__init__(transformer, plan.masks, layers.of(name))
        self.name = name
        self._sites = plan.sites
        self._layers = layers

    @property
    def _shapes(self) -> dict[str, torch.Size]:
        return self._layers.shapes

    def _masked(self) -> Iterable[tuple[str, str, Elements]]:
        return masked(self._sites, self._masks) if self._writes else ()

    def fill_(self, commit: Commit) -> None:
        """Switch its layers off on a model on which none of the pool's are.

        Raises:
            ApplyError: A write failed. The model was put back.
        """
        writes = self._writes
        carry_out_(partial(fill_and_check_, writes), partial(restore_, writes), "writing the masks", commit)
        self._layers.hold()

    def switch_(self, other: "Pooled", commit: Commit) -> int:
        """Put another policy of the pool in the place of this one, all or nothing; only what differs is written.

        First what is switched off, so that no weight that both policies mask is on in between.

        Args:
            other: The other policy.
            commit: What changes with it.

        Returns:
            How many tensors were written to, each time counted.

        Raises:
            ApplyError: The weights were changed since the pool was made, or a write failed. This policy stays in force.
            ModelError: What is written would not be what forward reads.
        """
        if not self._layers.are_held():
            self._check_all()
        change = self._layers.change(self.name, other.name)
        carry_out_(partial(_run, change.do), partial(_run, change.back), "switching the policy", commit)
        self._layers.count(len(change.do))
        return len(change.do)

    def _check_all(self) -> None:
        """Read every layer: those that are off are zero, and the others have the bits that were saved."""
        self._layers.hold()  # before the reading, so that a write that comes between is not missed
        self.check_unchanged("switch")
        check_reached(self._transformer)
        mine = set(self._writes)
        with torch.no_grad():
            rest = (layer.write for layer in self._layers.all if layer.write not in mine)
            check_put_back(rest, Values(self._transformer))

    def swap_(self, masks: MaskSet, commit: Callable[[Undo], Commit] | None = None) -> NoReturn:
        """Refuse.

        Raises:
            ApplyError: Always.
        """
        raise ApplyError("cannot swap: this policy is one of a pool, whose `under` switches between them")

    def refresh_(self) -> None:
        """Refuse.

        Raises:
            ApplyError: Always.
        """
        raise ApplyError(
            "cannot refresh: a pool of policies is in force, which keeps weights as they were when it was made. Close "
            "the pool, fuse the adapter or take it out, and make the pool anew."
        )


def _run(steps: Iterable[Callable[[], object]]) -> None:
    for step in steps:
        step()
