"""A policy, a store and a model become a plan: everything resolved and checked, nothing written.

Whatever can be refused is refused here: not a FLUX, weights that cannot be written, adapters that the policy forbids,
masks that are missing, damaged or made for another base, masks that switch nothing off, and more masked than the
policy's budget allows.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from safeflux.adapters import Admitted, check_adapters, wrapped_layers
from safeflux.errors import MaskMismatchError, ModelError, PolicyError, SafeFluxError
from safeflux.fingerprint import fingerprint
from safeflux.masks import Count, MaskSet, check_fit, compose, kind_of
from safeflux.policy import Action, Policy
from safeflux.sites import Site, find_sites
from safeflux.store import Store, StoredMask
from safeflux.weights import check_writable, find_transformer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CategoryPlan:
    """One category of the policy with the mask sets that were found for it."""

    name: str
    action: Action
    stored: tuple[StoredMask, ...]

    @cached_property
    def masks(self) -> MaskSet:
        """The AND of the category's mask sets."""
        return compose(*(stored.masks for stored in self.stored))


@dataclass(frozen=True)
class Plan:
    """What guarding would do: nothing of it is done yet."""

    policy: Policy
    base: str
    """Fingerprint of the base weights."""
    categories: Mapping[str, CategoryPlan]
    sites: Mapping[str, Site]
    standing: tuple["Plan", ...]
    """Plans that are in force on the model already."""

    @cached_property
    def masks(self) -> MaskSet:
        """The AND of all enforced categories: what is to be written."""
        return compose(*(c.masks for c in self.categories.values() if c.action is Action.ENFORCE))

    @cached_property
    def shares(self) -> dict[str, Count]:
        """Bits that will be off, standing masks included, of all bits that the model has, by kind of site."""
        totals: dict[str, int] = {}
        for site in self.sites.values():
            totals[site.kind] = totals.get(site.kind, 0) + site.num_bits
        masked = dict.fromkeys(totals, 0)
        for name, count in compose(*(p.masks for p in self.standing), self.masks).counts.items():
            masked[kind_of(name)] += count.masked
        return {kind: Count(masked[kind], totals[kind]) for kind in sorted(totals)}

    def check_enforces(self) -> None:
        """Make sure that there is something to write, and tell the log what is only warned about.

        Raises:
            PolicyError: Nothing is enforced.
        """
        if not self.masks:
            raise PolicyError(
                f"policy {self.policy.name!r} enforces no category, so it would guard nothing; use dry_run=True to look"
            )
        for category in self.categories.values():
            if category.action is Action.WARN:
                _log.warning(
                    "policy %r: category %r is on `warn`, so its masks are not written", self.policy.name, category.name
                )


def make_plan(
    policy: Policy,
    model: Any,
    store: Store,
    *,
    standing: tuple[Plan, ...] = (),
    base: str | None = None,
    admitted: Admitted = frozenset(),
) -> Plan:
    """Resolve and check all that a policy asks of a model. Reads weights, writes nothing.

    Args:
        policy: The effective policy.
        model: A pipeline or a transformer.
        store: Where mask sets are looked up.
        standing: Plans that are in force on the model already and stay so: their masks count against the budget, and
            their budgets hold too.
        base: Fingerprint of the base weights, where masks hide it; without, that of `standing` or of the weights.
        admitted: What adapters that the policy lists are recognised by (`adapters.admit`).

    Raises:
        ModelError: Not a FLUX, or its weights cannot be written, or it carries adapters that the policy does not allow.
        StoreError: A mask set that the policy names is in no store.
        MaskMismatchError: A mask set is for another base model, or does not fit, or switches nothing off.
        MaskFileError: A mask file is damaged.
        PolicyError: More would be masked than the policy's budget allows.
    """
    transformer = find_transformer(model)
    sites = find_sites(transformer)
    check_writable(transformer, sites.values())
    check_adapters(policy, transformer, admitted)
    base = base or (standing[0].base if standing else _base(transformer))
    return plan_for(policy, sites, base, store, standing=standing)


def plan_for(
    policy: Policy, sites: Mapping[str, Site], base: str, store: Store, *, standing: tuple[Plan, ...] = ()
) -> Plan:
    """The part of `make_plan` that needs no loaded model: its sites and its fingerprint do, which files have too.

    Args:
        policy: The effective policy.
        sites: The model's sites, by name.
        base: Fingerprint of its base weights.
        store: Where mask sets are looked up.
        standing: As for `make_plan`.

    Raises:
        SafeFluxError: The errors of `make_plan` that are not of the model.
    """
    categories = {
        name: CategoryPlan(
            name,
            category.action,
            tuple(_resolve(_place(policy, name), mask, store, base, sites) for mask in category.masks),
        )
        for name, category in policy.categories.items()
    }
    plan = Plan(policy, base, categories, sites, standing)
    _check_budget(plan)
    return plan


def _base(transformer: torch.nn.Module) -> str:
    fused = sorted({name for wrapped in wrapped_layers(transformer).values() for name in wrapped.fused})
    if fused:
        raise ModelError(
            f"adapter {fused[0]!r} is fused into the weights, so that their base model cannot be told. The order that "
            "works: `pipe.unfuse_lora()`, guard, fuse again, then the handle's `refresh()`."
        )
    return fingerprint(transformer)


def _place(policy: Policy, category: str) -> str:
    """The category, after the file and line that ask for its masks, if the policy came from a file."""
    origin = policy.origins.get(f"categories.{category}.masks")
    return f"{origin}: category {category!r}" if origin else f"category {category!r}"


def _resolve(where: str, mask: str, store: Store, base: str, sites: Mapping[str, Site]) -> StoredMask:
    """Find one mask set and check that it fits; errors say where it was asked for."""
    try:
        stored = store.find(mask, base)
        check_fit(stored.masks, sites)
        family = next(iter(sites.values())).family
        if stored.meta.family != family:
            raise MaskMismatchError(
                f"{stored.path}: made for the family {stored.meta.family!r}, the model is of {family!r}"
            )
        if not stored.masks.count.masked:
            raise MaskMismatchError(f"{stored.path}: switches nothing off, so it can erase nothing")
    except SafeFluxError as error:
        raise type(error)(f"{where}: {error}") from error
    return stored


def _check_budget(plan: Plan) -> None:
    """Refuse when any kind of site loses more than the budget: a sum over kinds would hide a ruined small kind."""
    tightest = min((plan.policy, *(p.policy for p in plan.standing)), key=lambda policy: policy.budget.max_share_masked)
    limit = tightest.budget.max_share_masked
    for kind, count in plan.shares.items():
        if count.share > limit:
            raise PolicyError(
                f"policy {tightest.name!r}: budget.max_share_masked is {limit:g}, and {count.share:.4g} of the {kind} "
                "bits would be "
                f"off ({count.masked} of {count.total}). Enforce fewer categories, or raise the budget."
            )
