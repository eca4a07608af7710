"""What is really in force, against what was asked for: the status of a guarded model, and the evidence of it as JSON.

Requested and in force are two fields everywhere, since the one is not the other. A receipt holds no prompt, no image
and no path, and it never says that anything is safe.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from safeflux import __version__
from safeflux.adapters import wrapped_layers
from safeflux.maskfile import digest
from safeflux.masks import MaskSet
from safeflux.plan import CategoryPlan, Plan
from safeflux.policy import Action
from safeflux.values import Values

FORMAT = "safeflux-receipt/1"


class State(StrEnum):
    """What a guard is worth right now."""

    UNGUARDED = "UNGUARDED"
    """Nothing of this guard is in force: a dry run, or undone."""
    GUARDED = "GUARDED"
    """Every masked element is zero in the tensors that the model has now."""
    DEGRADED = "DEGRADED"
    """Something that was switched off is on again, or the policy is broken by an adapter."""
    STALE = "STALE"
    """It cannot be told: tensors were replaced, offloaded or wrapped since."""


@dataclass(frozen=True)
class Amount:
    """Bits that were asked to be off, and bits that are off."""

    requested: int
    in_force: int


@dataclass(frozen=True)
class CategoryStatus:
    """One category: what the policy wants done, and what is done."""

    action: Action
    masks: tuple[str, ...]
    bits: Amount


@dataclass(frozen=True)
class Status:
    """Requested against in force, for each category and each site, as read from the model at this moment."""

    state: State
    policy: str
    categories: Mapping[str, CategoryStatus]
    sites: Mapping[str, Amount]
    faults: tuple[str, ...]


def make_status(plan: Plan, in_force: MaskSet, state: State, faults: tuple[str, ...]) -> Status:
    """Set what the plan asks for against what was read from the model.

    A category that is not enforced asks for no bit, whatever its masks hold.
    """
    counts = in_force.counts
    sites = {
        name: Amount(requested=count.masked, in_force=counts[name].masked if name in counts else 0)
        for name, count in plan.masks.counts.items()
    }
    categories = {name: _category_status(category, in_force) for name, category in plan.categories.items()}
    return Status(state, plan.policy.name, categories, sites, faults)


def make_receipt(plan: Plan, status: Status, transformer: torch.nn.Module) -> dict[str, Any]:
    """Return the evidence of one moment as plain JSON values: base, policy, masks, counts, versions, faults.

    `held` says how many parameters are held in memory, on disk, by an offload hook or packed by a quantiser; `adapters`
    names those on each layer, and which of them are fused into it.
    """
    return {
        "format": FORMAT,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "state": str(status.state),
        "faults": list(status.faults),
        "base": {
            "class": type(transformer).__name__,
            "family": next(iter(plan.sites.values())).family,
            "fingerprint": plan.base,
            "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in transformer.parameters()}),
            "devices": sorted({str(p.device) for p in transformer.parameters()}),
        },
        "adapters": {
            layer: {"adapters": list(wrapped.adapters), "fused": list(wrapped.fused)}
            for layer, wrapped in wrapped_layers(transformer).items()
        },
        "held": Values(transformer).holders(),
        "policy": {"name": plan.policy.name, "sha256": plan.policy.digest, "effective": plan.policy.values()},
        "standing_policies": [{"name": p.policy.name, "sha256": p.policy.digest} for p in plan.standing],
        "masks_sha256": digest(plan.masks),
        "categories": {
            name: _category_entry(plan.categories[name], entry) for name, entry in status.categories.items()
        },
        "sites": {name: _amount(amount) for name, amount in status.sites.items()},
        "shares": {kind: {"masked": count.masked, "total": count.total} for kind, count in plan.shares.items()},
        "versions": {"safeflux": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in ("torch", "diffusers", "peft")},
        "limits": "Zeros in the weights show what was switched off; they do not prove that a concept cannot be drawn.",
    }


def _category_status(category: CategoryPlan, in_force: MaskSet) -> CategoryStatus:
    requested = off = 0
    if category.action is Action.ENFORCE:
        requested = category.masks.count.masked
        off = sum(
            int((~(mask | in_force[name])).count_nonzero()) for name, mask in category.masks.items() if name in in_force
        )
    return CategoryStatus(category.action, tuple(stored.name for stored in category.stored), Amount(requested, off))


def _category_entry(category: CategoryPlan, status: CategoryStatus) -> dict[str, Any]:
    masks = [
        {
            "name": stored.name,
            "file_sha256": stored.sha256,
            "masks_sha256": digest(stored.masks),
            "base_model": stored.meta.base_model,
            "concepts": list(stored.meta.concepts),
            "method": stored.meta.method,
            "evaluation": stored.meta.evaluation,
            "licence": stored.meta.licence,
        }
        for stored in category.stored
    ]
    return {"action": str(status.action), "bits": _amount(status.bits), "masks": masks}


def _amount(amount: Amount) -> dict[str, int]:
    return {"requested": amount.requested, "in_force": amount.in_force}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
