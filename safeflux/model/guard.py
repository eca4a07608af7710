"""`guard`: puts a policy in force on a loaded model, in place.

One record on the transformer, under one private attribute, remembers what is in force and what restores it. A second
guard with another policy composes by AND on top of the first; guards are undone last first. Guarding again with the
same policy changes nothing. An owner of the process can always undo a guard: `verify` detects, it does not prevent.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch

from safeflux.errors import ApplyError
from safeflux.masks.store import Store, StoreLike, open_store
from safeflux.model.adapters import Admitted, admit
from safeflux.model.apply import Undo, apply_masks_
from safeflux.model.commit import Commit
from safeflux.model.compact import remove_masked_
from safeflux.model.handle import GuardHandle
from safeflux.model.planning import make_plan
from safeflux.model.record import ATTRIBUTE, GONE, Entry, Record, Standing, record_of, standing_record
from safeflux.model.turn_lock import turns_of
from safeflux.model.watch.forward import Makers, reset_caches
from safeflux.model.watch.parts import named_parts
from safeflux.model.watch.pipeline import Rest
from safeflux.model.watch.sample import Sample
from safeflux.model.watch.settings import Settings
from safeflux.model.weights import check_not_compiled, find_transformer
from safeflux.plan.lock import check_lock
from safeflux.plan.resolve import Plan
from safeflux.policy.load import Policy, load_policy
from safeflux.telemetry import span

_log = logging.getLogger(__name__)


def guard(
    model: Any,
    policy: str | os.PathLike[str] | Policy = "strict",
    *,
    store: StoreLike | Store | None = None,
    adapters: Sequence[str | os.PathLike[str]] = (),
    lock: str | os.PathLike[str] | None = None,
    keys: Sequence[str | os.PathLike[str]] = (),
    compact: bool = False,
    dry_run: bool = False,
) -> GuardHandle:
    """Put a policy in force on a FLUX model, in place; nothing but zeros stays behind.

    Everything is resolved and checked before the first write, and a failure at any write leaves the model bit for bit
    as it was. The order that works: load, guard, then adapters, quantisation, offload, compile; then `verify`. Adapters
    on masked layers are fused (`pipe.fuse_lora()`) and the guard refreshed (`GuardHandle.refresh`).

    Args:
        model: A FLUX pipeline of diffusers, or its transformer.
        policy: Name of a bundled policy, path of a policy file, or a `Policy`.
        store: A folder, or several, with mask files besides the bundled ones.
        adapters: Adapter files that the policy lists by sha256 (`adapters: allowlist`), in the format of PEFT and
            diffusers; they may be on the model already, or come later.
        lock: A lock file (`safeflux policy lock`): policy, base and masks must be exactly those.
        keys: Public keys (PEM) of the trusted signers of mask files: those that the policy lists (`signatures`). A
            `Store` can hold them too (`open_store(folders, keys)`), which is what `swap` takes.
        compact: Remove masked neurons of feed-forwards instead of filling them with zeros, so that the model is
            smaller and faster; there is no undo and no swap then. `safeflux.load_compact` loads what is saved.
        dry_run: Plan and check only; nothing is written, and the handle says UNGUARDED.

    Returns:
        A handle with `status`, `verify`, `refresh`, `swap`, `undo` and `receipt`.

    Raises:
        PolicyError: The policy is not valid, enforces nothing, or its budget does not suffice; or it is not what was
            locked.
        ModelError: Not a FLUX, or its weights cannot be written as they are; the message gives the order that works.
        StoreError: A mask set that the policy names is in no store.
        MaskMismatchError: A mask set was trained for another base model.
        MaskFileError: A mask file is damaged.
        SignatureError: A mask file is not signed by a key that the policy lists.
        ApplyError: A write failed; the model was put back.
    """
    effective = load_policy(policy)
    transformer = find_transformer(model)
    check_not_compiled(transformer)
    turns = turns_of(transformer)
    masks = open_store(store, keys).including(effective.stores)  # downloads now, not while pictures wait
    admitted = admit(effective, *adapters)

    def resolve() -> GuardHandle:
        record = standing_record(transformer)
        if record.is_final:
            entry = record.entries[-1]
            if entry.plan.policy != effective:
                raise ApplyError(f"cannot guard once more: {GONE}, and guard it with a policy that has all categories")
            return GuardHandle(model, entry.plan, entry, owns=False)
        plan = make_plan(effective, model, masks, standing=record.plans, admitted=admitted)
        if lock is not None:
            check_lock(plan, lock)
        if dry_run:
            return GuardHandle(model, plan, None, owns=False)
        plan.check_enforces()
        for entry in record.entries:
            if entry.plan.policy == effective and entry.plan.masks == plan.masks:
                entry.admitted |= admitted
                return GuardHandle(model, entry.plan, entry, owns=False)
        rest = Rest(model)
        entry = turns.write(lambda: _write(transformer, record, plan, admitted, compact=compact))
        _log.info("guard: %s", plan.line)
        return GuardHandle(model, plan, entry, owns=not compact, rest=rest)

    with span("guard", policy=effective.name, policy_sha256=effective.digest, dry_run=dry_run):
        return (turns.draw if dry_run else turns.plan)(resolve)


def _write(transformer: torch.nn.Module, record: Record, plan: Plan, admitted: Admitted, *, compact: bool) -> Entry:
    """Put a policy in force on top of those that are, weights and record together."""
    reset_caches(map(vars, named_parts(transformer).values()))
    sample = record.sample or (None if compact else Sample(transformer))

    def commit(undo: Undo) -> Commit:
        def make() -> Record:
            drawn = sample or Sample(transformer)  # of a compacted model after the cut: nothing brings back what it was
            entry = Entry(Standing(plan, undo, drawn.masked_by(undo)), drawn, Settings(Makers(transformer)), admitted)
            return record.plus(entry, drawn)

        return Commit(vars(transformer), ATTRIBUTE, make)

    (remove_masked_ if compact else apply_masks_)(transformer, plan.masks, commit)
    return record_of(transformer).entries[-1]
