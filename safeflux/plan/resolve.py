"""A policy, a store and a model become a plan: everything resolved and checked, nothing written.

Everything that can be refused without the weights is refused here: masks that are missing, damaged or made for another
base, masks that do not erase what the policy says, switch nothing off or are not signed as the policy requires, and
more masked bits than its budget allows. Checks that need a loaded model are in `model.planning`. No torch: a model's
sites and fingerprint are enough, and files have them too.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safeflux.cached import cached_property
from safeflux.errors import MaskMismatchError, PolicyError, SafeFluxError, SignatureError
from safeflux.evidence.signatures import check_signed
from safeflux.families.sites import Sites, kind_of
from safeflux.masks.mask_set import Count, MaskSet, check_fit, compose
from safeflux.masks.store import Store, StoredMask
from safeflux.policy.claims import faults
from safeflux.policy.load import Action, Category, Policy

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


@dataclass(frozen=True, repr=False)
class Plan:
    """What guarding would do; nothing is done yet."""

    policy: Policy
    base: str
    """Fingerprint of the base weights."""
    categories: Mapping[str, CategoryPlan]
    sites: Sites
    standing: tuple["Plan", ...]
    """Plans that are already in force on the model."""

    def __repr__(self) -> str:
        """Show the policy, a line for each category, and the bits that would be off: at most 20 lines."""
        width = max(map(len, self.categories), default=0)
        categories = [
            f"  {name:{width}}  {category.action:8} {category.masks.count.masked:>13,} bits  "
            f"{', '.join(stored.name for stored in category.stored)}"
            for name, category in self.categories.items()
        ]
        shares = [
            f"  {kind:{width}}  {count.masked:>13,} of {count.total:>15,} bits off ({count.share:.4%})"
            for kind, count in self.shares.items()
        ]
        standing = (
            [f"  on top of {', '.join(repr(plan.policy.name) for plan in self.standing)}"] if self.standing else []
        )
        title = f"Plan of {self.policy.name!r} for {shorten(self.base, 40)}"
        return "\n".join([title, *first(categories, 10, "categories"), *standing, *first(shares, 6, "kinds")])

    @cached_property
    def masks(self) -> MaskSet:
        """The AND of all enforced categories: the masks to write."""
        return compose(*(c.masks for c in self.categories.values() if c.action is Action.ENFORCE))

    @property
    def line(self) -> str:
        """One line for a log: the policy with the first digits of its digest, the base, and the number of bits off."""
        off, digest = self.masks.count.masked, self.policy.digest[:12]
        return f"policy {self.policy.name!r} (sha256:{digest}) on {shorten(self.base, 40)}, {off:,} bits off"

    @cached_property
    def shares(self) -> dict[str, Count]:
        """Bits that will be off, standing masks included, out of all bits of the model, by kind of site."""
        totals: dict[str, int] = {}
        for site in self.sites.values():
            totals[site.kind] = totals.get(site.kind, 0) + site.num_bits
        masked = dict.fromkeys(totals, 0)
        for name, count in compose(*(p.masks for p in self.standing), self.masks).counts.items():
            masked[kind_of(name)] += count.masked
        return {kind: Count(masked[kind], totals[kind]) for kind in sorted(totals)}

    def check_enforces(self) -> None:
        """Check that something is enforced, and log the categories that are only warned about.

        Raises:
            PolicyError: Nothing is enforced.
        """
        if not self.masks:
            raise PolicyError(
                f"policy {self.policy.name!r} enforces no category, so it would guard nothing; set `action: enforce` "
                "for one, or use dry_run=True to look"
            )
        for category in self.categories.values():
            if category.action is Action.WARN:
                _log.warning(
                    "policy %r: category %r is on `warn`, so its masks are not written", self.policy.name, category.name
                )


def first(lines: Sequence[str], most: int, what: str) -> list[str]:
    """Return the first lines, and a line with the number of the others."""
    return [*lines[:most], *([f"  and {len(lines) - most} more {what}"] if len(lines) > most else [])]


def shorten(text: str, most: int) -> str:
    """Return a string on one line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def plan_for(policy: Policy, sites: Sites, base: str, store: Store, *, standing: tuple[Plan, ...] = ()) -> Plan:
    """Resolve and check a policy for a base model.

    Args:
        policy: The effective policy.
        sites: The model's sites, by name.
        base: Fingerprint of its base weights.
        store: Where mask sets are looked up, besides the policy's `stores`, with the public keys that may have signed
            them.
        standing: Plans that are already in force on the model and stay so: their masks count against the budget, and
            their budgets apply too.

    Raises:
        StoreError: A mask set that the policy names is in no store, or a store that it names cannot be had.
        MaskMismatchError: A mask set is for another base model, does not fit, switches nothing off, or does not erase
            what the policy says.
        MaskFileError: A mask file is damaged.
        SignatureError: A mask file is not signed by a key that the policy lists; or keys are given, and it lists none.
        PolicyError: More would be masked than the policy's budget allows.
    """
    if store.keys and not policy.signatures.keys:
        raise SignatureError(
            f"policy {policy.name!r}: keys were given ({', '.join(map(str, store.keys))}), but the policy lists none, "
            "so no signature would be checked; list the key's sha256 under `signatures: {keys: [...]}`, or pass no key"
        )
    found = store.including(policy.stores)
    categories = {
        name: _resolve_category(policy, name, category, found, base, sites)
        for name, category in policy.categories.items()
    }
    plan = Plan(policy, base, categories, sites, standing)
    _check_budget(plan)
    return plan


def _place(policy: Policy, category: str) -> str:
    """The category, preceded by the file and line that list its masks, if the policy came from a file."""
    origin = policy.origins.get(f"categories.{category}.masks")
    return f"{origin}: category {category!r}" if origin else f"category {category!r}"


def _resolve_category(
    policy: Policy, name: str, category: Category, store: Store, base: str, sites: Sites
) -> CategoryPlan:
    stored = tuple(_resolve(policy, name, mask, store, base, sites) for mask in category.masks)
    if found := faults(name, category, [one.claim for one in stored]):
        raise MaskMismatchError(f"{_place(policy, name)}: {'; '.join(found)}")
    return CategoryPlan(name, category.action, stored)


def _resolve(policy: Policy, category: str, mask: str, store: Store, base: str, sites: Sites) -> StoredMask:
    """Find one mask set, check its signature and that it fits; errors say which line of the policy asked for it."""
    try:
        stored = store.find(mask, base)
        if policy.signatures.keys:
            check_signed(stored.path, stored.sha256, policy.signatures.keys, store.keys)
        check_fit(stored.masks, sites)
        family = sites.family
        if stored.meta.family != family:
            raise MaskMismatchError(
                f"{stored.path}: made for the family {stored.meta.family!r}, the model is of {family!r}"
            )
        if not stored.masks.count.masked:
            raise MaskMismatchError(f"{stored.path}: switches nothing off, so it erases nothing")
    except SafeFluxError as error:
        raise type(error)(f"{_place(policy, category)}: {error}") from error
    return stored


def _check_budget(plan: Plan) -> None:
    """Refuse if any kind of site loses more than the budget: a sum over kinds would hide a ruined small kind."""
    tightest = min((plan.policy, *(p.policy for p in plan.standing)), key=lambda policy: policy.budget.max_share_masked)
    limit = tightest.budget.max_share_masked
    for kind, count in plan.shares.items():
        if count.share > limit:
            raise PolicyError(
                f"policy {tightest.name!r}: budget.max_share_masked is {limit:g}, and {count.share:.4g} of the {kind} "
                f"bits would be off ({count.masked} of {count.total}). Enforce fewer categories, or raise the budget."
            )
