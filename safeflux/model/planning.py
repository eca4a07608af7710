"""A policy, a store and a loaded model become a plan: everything checked, nothing written.

To what `plan` refuses comes what only the model can tell: that it is no FLUX, that its weights cannot be written as
they are, that it carries adapters which the policy forbids.
"""

from typing import Any

import torch

from safeflux.errors import ModelError
from safeflux.masks.store import Store
from safeflux.model.adapters import Admitted, check_adapters, wrapped_layers
from safeflux.model.watch.parts import named_parts
from safeflux.model.watch.pipeline import check_parts
from safeflux.model.weights import check_writable, find_transformer, fingerprint, sites_of
from safeflux.plan.resolve import Plan, plan_for
from safeflux.policy.load import Policy


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
        standing: As for `plan_for`.
        base: Fingerprint of the base weights, where masks hide it; without, that of `standing` or of the weights.
        admitted: What adapters that the policy lists are recognised by (`adapters.admit`).

    Raises:
        ModelError: Not a FLUX, or its weights cannot be written, or it carries adapters that the policy does not allow.
        SafeFluxError: The errors of `plan_for`.
    """
    transformer = find_transformer(model)
    sites = sites_of(transformer)
    check_writable(transformer, sites.values())
    check_adapters(policy, transformer, admitted)
    check_parts(policy, model, admitted)
    base = base or (standing[0].base if standing else _base(transformer))
    return plan_for(policy, sites, base, store, standing=standing)


def _base(transformer: torch.nn.Module) -> str:
    fused = sorted({name for wrapped in wrapped_layers(named_parts(transformer)).values() for name in wrapped.fused})
    if fused:
        raise ModelError(
            f"adapter {fused[0]!r} is fused into the weights, so their base model is not known. The order that "
            "works: `pipe.unfuse_lora()`, guard, fuse again, then the handle's `refresh()`."
        )
    return fingerprint(transformer)
