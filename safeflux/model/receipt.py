"""The evidence of one moment of a guarded model, as JSON: what was asked for, what is in force, on which base.

A receipt holds no prompt, no image and no path, and it never says that anything is safe.
"""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import torch

from safeflux._version import __version__
from safeflux.doctor.checks import installed
from safeflux.masks.encoding import digest
from safeflux.model.adapters import wrapped_layers
from safeflux.model.forward_values import Values
from safeflux.model.watch.parts import named_parameters, named_parts
from safeflux.plan.receipts import RECEIPT
from safeflux.plan.resolve import CategoryPlan, Plan
from safeflux.plan.status import Amount, CategoryStatus, Status


def make_receipt(
    plan: Plan, status: Status, transformer: torch.nn.Module, watched: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the evidence of one moment as plain JSON values: base, policy, masks, counts, versions, faults.

    `held` says how many parameters are held in memory, on disk, by an offload hook or packed by a quantiser; `adapters`
    names those on each layer, which of them are fused into it, and their scales. `watched` names the parts of the
    pipeline that were noted beside the transformer; where a transformer was guarded alone it is empty.
    """
    return fill_receipt(
        plan,
        status,
        base={
            "class": type(transformer).__name__,
            "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in named_parameters(transformer).values()}),
            "devices": sorted({str(p.device) for p in named_parameters(transformer).values()}),
        },
        adapters={
            layer: {
                "adapters": list(wrapped.adapters),
                "fused": list(wrapped.fused),
                "scales": dict(wrapped.scales),
            }
            for layer, wrapped in wrapped_layers(named_parts(transformer)).items()
        },
        watched=watched,
        held=Values(transformer).holders(),
    )


def fill_receipt(
    plan: Plan,
    status: Status,
    *,
    base: Mapping[str, Any],
    adapters: Mapping[str, Any],
    watched: Sequence[str],
    held: Mapping[str, int],
    versions: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return a receipt, from what is known of the model besides its plan and status.

    Args:
        plan: What was asked for.
        status: What is in force.
        base: The model's class, and the types and devices of its weights.
        adapters: What is on each layer.
        watched: The parts of a pipeline that were noted beside the transformer.
        held: How many parameters are held in which way.
        versions: Of other software than Python, safeflux and its libraries.
    """
    return {
        "format": RECEIPT,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "state": str(status.state),
        "faults": list(status.faults),
        "base": {**base, "family": plan.sites.family, "fingerprint": plan.base},
        "adapters": dict(adapters),
        "watched": {
            "transformer": True,
            "parts": list(watched),
            "note": ""
            if watched
            else "the transformer was guarded alone: text encoders, scheduler and VAE are not watched",
        },
        "held": dict(held),
        "policy": {"name": plan.policy.name, "sha256": plan.policy.digest, "effective": plan.policy.values()},
        "standing_policies": [{"name": p.policy.name, "sha256": p.policy.digest} for p in plan.standing],
        "masks_sha256": digest(plan.masks),
        "categories": {
            name: _category_entry(plan.categories[name], entry) for name, entry in status.categories.items()
        },
        "sites": {name: _amount(amount) for name, amount in status.sites.items()},
        "shares": {kind: {"masked": count.masked, "total": count.total} for kind, count in plan.shares.items()},
        "versions": {"safeflux": __version__, "python": platform.python_version()}
        | installed(("torch", "diffusers", "peft"))
        | dict(versions),
        "limits": "Zeros in the weights show what was switched off; they do not prove that a concept cannot be drawn.",
    }


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
