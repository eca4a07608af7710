"""What is requested and what is in force, for a loaded model or for files. No torch.

Requested and in force are separate fields everywhere, since they can differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from safeflux.masks.mask_set import MaskSet, overlap
from safeflux.plan.resolve import CategoryPlan, Plan, first, shorten
from safeflux.policy.load import Action


class State(StrEnum):
    """The state of a guard right now."""

    UNGUARDED = "UNGUARDED"
    """Nothing of this guard is in force: a dry run, or undone."""
    GUARDED = "GUARDED"
    """Every masked element is zero in the model's current tensors."""
    DEGRADED = "DEGRADED"
    """Something that was switched off is on again, or the policy is broken by an adapter."""
    STALE = "STALE"
    """It cannot be determined: tensors were replaced, offloaded or wrapped since."""


@dataclass(frozen=True)
class Amount:
    """Bits that should be off, and bits that are off."""

    requested: int
    in_force: int


@dataclass(frozen=True)
class CategoryStatus:
    """One category: what is requested, and what is in force."""

    action: Action
    masks: tuple[str, ...]
    bits: Amount


@dataclass(frozen=True, repr=False)
class Status:
    """Requested and in force, for each category and each site, as read from the model at this moment."""

    state: State
    policy: str
    categories: Mapping[str, CategoryStatus]
    sites: Mapping[str, Amount]
    faults: tuple[str, ...]

    def __repr__(self) -> str:
        """Show the state, a line for each category, and the first faults: at most 20 lines."""
        width = max(map(len, self.categories), default=0)
        categories = [
            f"  {name:{width}}  {category.action:8} {category.bits.in_force:>13,} of {category.bits.requested:>13,} "
            f"bits off  {', '.join(category.masks)}"
            for name, category in self.categories.items()
        ]
        faults = [f"  fault: {shorten(fault, 160)}" for fault in self.faults]
        sites = (
            f"  {sum(a.requested == a.in_force for a in self.sites.values())} of {len(self.sites)} sites as requested"
        )
        return "\n".join(
            [
                f"Status of {self.policy!r}: {self.state}",
                *first(categories, 10, "categories"),
                sites,
                *first(faults, 6, "faults"),
            ]
        )


def make_status(plan: Plan, in_force: MaskSet, state: State, faults: tuple[str, ...]) -> Status:
    """Compare the plan with what was read from the model.

    A category that is not enforced requests no bits, whatever its masks hold.
    """
    counts = in_force.counts
    sites = {
        name: Amount(requested=count.masked, in_force=counts[name].masked if name in counts else 0)
        for name, count in plan.masks.counts.items()
    }
    categories = {name: _category_status(category, in_force) for name, category in plan.categories.items()}
    return Status(state, plan.policy.name, categories, sites, faults)


def _category_status(category: CategoryPlan, in_force: MaskSet) -> CategoryStatus:
    requested = off = 0
    if category.action is Action.ENFORCE:
        requested = category.masks.count.masked
        off = sum(overlap(category.masks, in_force).values())
    return CategoryStatus(category.action, tuple(stored.name for stored in category.stored), Amount(requested, off))
