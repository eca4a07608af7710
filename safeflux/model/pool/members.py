"""The policies of a pool on one model: their plans, their writes, and the checks that all of them pass."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from safeflux.errors import ApplyError, PolicyError
from safeflux.masks.store import Store
from safeflux.model.adapters import Admitted
from safeflux.model.apply import restore_
from safeflux.model.commit import Commit, carry_out_
from safeflux.model.planning import make_plan
from safeflux.model.pool.layers import MOST_SETS, Layers
from safeflux.model.pool.pooled import Pooled
from safeflux.model.record import Standing
from safeflux.model.watch.sample import Sample
from safeflux.plan.resolve import Plan
from safeflux.policy.load import Policy, load_policy


@dataclass(frozen=True, eq=False)
class Member(Standing):
    """One policy of a pool, ready to be in force."""

    undo: Pooled
    name: str
    """Its name in the pool."""
    members: "Members"
    """All of the pool, itself among them."""


class Members:
    """All policies of a pool, on a model on which none of them is in force."""

    def __init__(self, transformer: torch.nn.Module, plans: Mapping[str, Plan], sample: Sample) -> None:
        """Split what they write, and save what is there; writes nothing.

        Raises:
            SafeFluxError: The errors of `apply_masks_`.
        """
        self.layers = Layers(transformer, {name: plan.masks for name, plan in plans.items()})
        self._by_name = {}
        for name, plan in plans.items():
            undo = Pooled(transformer, plan, self.layers, name)
            self._by_name[name] = Member(plan, undo, sample.masked_by(undo), name, self)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, the first one first."""
        return tuple(self._by_name)

    @property
    def plans(self) -> dict[str, Plan]:
        """What each asks for."""
        return {name: member.plan for name, member in self._by_name.items()}

    def __getitem__(self, name: str) -> Member:
        """Return one.

        Raises:
            ApplyError: There is none of this name.
        """
        if name not in self._by_name:
            raise ApplyError(f"no policy {name!r} in the pool; it has {', '.join(map(repr, self._by_name))}")
        return self._by_name[name]


def load_all(policies: Mapping[str, str | os.PathLike[str] | Policy], masks: Store) -> dict[str, Policy]:
    """Load the policies of a pool, and download the masks of their stores.

    Raises:
        PolicyError: One is not valid, there are none or too many, or they do not say the same of adapters.
        StoreError: Masks cannot be downloaded.
    """
    effective = {name: load_policy(policy) for name, policy in policies.items()}
    _check_policies(effective)
    for policy in effective.values():
        masks.including(policy.stores)  # downloads now, not while pictures wait
    return effective


def plan_all(
    policies: Mapping[str, Policy],
    model: Any,
    store: Store,
    *,
    standing: tuple[Plan, ...],
    base: str | None,
    admitted: Admitted,
) -> dict[str, Plan]:
    """Resolve and check all policies of a pool; the arguments are those of `make_plan`.

    Raises:
        SafeFluxError: The errors of `guard`, for any of the policies.
    """
    plans: dict[str, Plan] = {}
    for name, policy in policies.items():
        plan = make_plan(policy, model, store, standing=standing, base=base, admitted=admitted)
        plan.check_enforces()
        plans[name], base = plan, plan.base
    return plans


def replace_(old: Member, make: Callable[[], Members], name: str, slots: dict[str, Any]) -> None:
    """Take a policy of a pool out of a model and put one of other members in its place, all or nothing.

    Every layer of the new members is filled, read back and restored before that, so that no later switch fails.

    Args:
        old: What is in force.
        make: Makes the new members, on the base weights.
        name: Which of them is to be in force.
        slots: Where the new one is assigned, under `now`.

    Raises:
        ApplyError: The weights were changed by others, or a write failed. The old policy stays in force.
    """
    old.undo.check_unchanged("replace the policies")
    made: list[Members] = []

    def do() -> None:
        restore_(old.members.layers.of(old.name))
        made.append(make())
        for layer in made[0].layers.all:
            layer.write.fill_()
            layer.write.check_off()
            layer.write.restore_()
        for write in made[0].layers.of(name):
            write.fill_()

    def back() -> None:
        for members in made:
            restore_(layer.write for layer in members.layers.all)
        for write in old.members.layers.of(old.name):
            write.fill_()

    carry_out_(do, back, "replacing the policies", Commit(slots, "now", lambda: made[0][name]))
    made[0].layers.hold()


def _check_policies(policies: Mapping[str, Policy]) -> None:
    """Make sure that policies can be in one pool."""
    if not 1 <= len(policies) <= MOST_SETS:
        raise PolicyError(f"a pool has 1 to {MOST_SETS} policies, got {len(policies)}")
    (first, policy), *others = policies.items()
    for name, other in others:
        for field in ("adapters", "adapter_allowlist"):
            mine, its = getattr(policy, field), getattr(other, field)
            if mine != its:
                raise PolicyError(
                    f"policies of a pool say the same of adapters, which the model carries under each of them; "
                    f"{first!r} says {field}: {mine}, {name!r} says {field}: {its}"
                )
