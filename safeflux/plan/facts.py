"""What a plan comes to, in plain values, for JSON and pages."""

from typing import Any

from safeflux.masks.card import about
from safeflux.plan.resolve import Plan


def plan_facts(plan: Plan) -> dict[str, Any]:
    """The policy, what each of its masks erases and costs by its own file, and how much would be off."""
    return {
        "policy": plan.policy.name,
        "sha256": plan.policy.digest,
        "base": plan.base,
        "categories": {
            name: {
                "action": str(category.action),
                "masks": {one.name: {"sha256": one.sha256, **about(one.meta)} for one in category.stored},
                "bits": category.masks.count.masked,
            }
            for name, category in plan.categories.items()
        },
        "shares": {kind: {"masked": count.masked, "total": count.total} for kind, count in plan.shares.items()},
        "sites": {name: count.masked for name, count in plan.masks.counts.items() if count.masked},
        "budget": plan.policy.budget.max_share_masked,
    }
