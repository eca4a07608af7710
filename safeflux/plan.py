"""A policy, a store and a model become a plan: everything resolved and checked, nothing written.

Whatever can be refused without the weights themselves is refused here: masks that are missing, damaged or made for
another base, masks that switch nothing off or are not signed as the policy wants, and more masked than its budget
allows. What only a loaded model can tell is in `modelplan`. No torch: a model's sites and fingerprint are enough, and
files have them too.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from safeflux.errors import MaskMismatchError, PolicyError, SafeFluxError
from safeflux.masks import Count, MaskSet, check_fit, compose, kind_of
from safeflux.policy import Action, Policy
from safeflux.signing import check_signed
from safeflux.sites import Site
from safeflux.store import Store, StoredMask

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


def plan_for(
    policy: Policy, sites: Mapping[str, Site], base: str, store: Store, *, standing: tuple[Plan, ...] = ()
) -> Plan:
    """Resolve and check all that a policy asks of a base model.

    Args:
        policy: The effective policy.
        sites: The model's sites, by name.
        base: Fingerprint of its base weights.
        store: Where mask sets are looked up, with the public keys that may have signed them.
        standing: Plans that are in force on the model already and stay so: their masks count against the budget, and
            their budgets hold too.

    Raises:
        StoreError: A mask set that the policy names is in no store.
        MaskMismatchError: A mask set is for another base model, or does not fit, or switches nothing off.
        MaskFileError: A mask file is damaged.
        SignatureError: A mask file is not signed by a key that the policy lists.
        PolicyError: More would be masked than the policy's budget allows.
    """
    categories = {
        name: CategoryPlan(
            name,
            category.action,
            tuple(_resolve(policy, name, mask, store, base, sites) for mask in category.masks),
        )
        for name, category in policy.categories.items()
    }
    plan = Plan(policy, base, categories, sites, standing)
    _check_budget(plan)
    return plan


def _place(policy: Policy, category: str) -> str:
    """The category, after the file and line that ask for its masks, if the policy came from a file."""
    origin = policy.origins.get(f"categories.{category}.masks")
    return f"{origin}: category {category!r}" if origin else f"category {category!r}"


def _resolve(
    policy: Policy, category: str, mask: str, store: Store, base: str, sites: Mapping[str, Site]
) -> StoredMask:
    """Find one mask set, check who signed it and that it fits; errors say where it was asked for."""
    try:
        stored = store.find(mask, base)
        if policy.signatures.keys:
            check_signed(stored.path, stored.sha256, policy.signatures.keys, store.keys)
        check_fit(stored.masks, sites)
        family = next(iter(sites.values())).family
        if stored.meta.family != family:
            raise MaskMismatchError(
                f"{stored.path}: made for the family {stored.meta.family!r}, the model is of {family!r}"
            )
        if not stored.masks.count.masked:
            raise MaskMismatchError(f"{stored.path}: switches nothing off, so it can erase nothing")
    except SafeFluxError as error:
        raise type(error)(f"{_place(policy, category)}: {error}") from error
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
