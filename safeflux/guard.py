"""The one verb: a policy into a loaded model, in place.

One record on the transformer, under one private attribute, remembers what is in force and what restores it. A second
guard with another policy composes by AND on top of the first; guards are undone last first. Guarding again with the
same policy changes nothing. An owner of the process can always undo a guard: `verify` detects, it does not prevent.
"""

import os
from collections.abc import Sequence
from typing import Any

from safeflux.adapters import admit
from safeflux.apply import apply_masks_
from safeflux.errors import ApplyError
from safeflux.handle import GuardHandle
from safeflux.lock import check_lock
from safeflux.modelplan import make_plan
from safeflux.policy import Policy, load_policy
from safeflux.record import GONE, Entry, standing_record
from safeflux.removed import remove_masked_
from safeflux.store import Store, StoreLike, open_store
from safeflux.turns import turns_of
from safeflux.weights import check_not_compiled, find_transformer


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

    All is resolved and checked before the first write, and a failure at any write leaves the model bit for bit as it
    was. The order that works: load, guard, then adapters, quantisation, offload, compile; then `verify`. Adapters on
    masked layers are fused (`pipe.fuse_lora()`) and the guard refreshed (`GuardHandle.refresh`).

    Args:
        model: A FLUX pipeline of diffusers, or its transformer.
        policy: Name of a bundled policy, path of a policy file, or a `Policy`.
        store: A folder, or several, with mask files besides the bundled ones.
        adapters: Adapter files that the policy lists by sha256 (`adapters: allowlist`), in the format of PEFT and
            diffusers; they may be on the model already, or come later.
        lock: A lock file (`safeflux policy lock`): policy, base and masks must be exactly those.
        keys: Public keys, PEM, of who may have signed the mask files: those that the policy lists (`signatures`). A
            `Store` can hold them too (`open_store(folders, keys)`), which is what `swap` takes.
        compact: Cut masked neurons of feed-forwards out instead of filling them with zeros, so that the model is
            smaller and faster; there is no undo and no swap then. `compactfile.load_compact` loads what is saved.
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
    turns, masks = turns_of(transformer), open_store(store, keys)
    admitted = admit(effective, *adapters)
    with turns.drawing() if dry_run else turns.planning():
        record = standing_record(transformer)
        if record.is_final:
            entry = record.entries[-1]
            if entry.plan.policy != effective:
                raise ApplyError(f"cannot guard once more: {GONE}, and guard it with a policy that has all categories")
            return GuardHandle(model, entry.plan, entry, owns=False)
        plan = make_plan(effective, transformer, masks, standing=record.plans, admitted=admitted)
        if lock is not None:
            check_lock(plan, lock)
        if dry_run:
            return GuardHandle(model, plan, None, owns=False)
        plan.check_enforces()
        for entry in record.entries:
            if entry.plan.policy == effective and entry.plan.masks == plan.masks:
                entry.admitted |= admitted
                return GuardHandle(model, entry.plan, entry, owns=False)
        with turns.writing(), record.writing(transformer):
            undo = (remove_masked_ if compact else apply_masks_)(transformer, plan.masks)
            entry = Entry(plan, undo, undo.watch(), admitted)
            record.entries.append(entry)
            record.keep_on(transformer)
        return GuardHandle(model, plan, entry, owns=not compact)
