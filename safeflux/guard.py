"""The one verb: a policy into a loaded model, in place, and the handle that tells what became of it.

One record on the transformer, under one private attribute, remembers what is in force and what restores it. A second
guard with another policy composes by AND on top of the first; guards are undone last first. Guarding again with the
same policy changes nothing. An owner of the process can always undo a guard: `verify` detects, it does not prevent.
"""

import logging
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch

from safeflux.apply import Undo, apply_masks_
from safeflux.errors import ApplyError, ModelError, PolicyError
from safeflux.masks import MaskSet
from safeflux.plan import Plan, check_adapters, make_plan
from safeflux.policy import Action, Policy, load_policy
from safeflux.receipt import State, Status, make_receipt, make_status
from safeflux.store import Store, StoreLike, open_store
from safeflux.turns import turns_of
from safeflux.watch import Watch
from safeflux.weights import find_transformer, uncompiled

_ATTRIBUTE = "_safeflux"
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Entry:
    """One policy in force on a model."""

    plan: Plan
    undo: Undo
    seen: Watch | None
    """The model as it was when all masked elements were last read; None if they were not all zero then."""


@dataclass(eq=False)
class _Record:
    """All policies in force on a transformer, in the order in which they were put there."""

    entries: list[_Entry] = field(default_factory=list)

    @property
    def plans(self) -> tuple[Plan, ...]:
        return tuple(entry.plan for entry in self.entries)


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    state: State
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True only for GUARDED."""
        return self.state is State.GUARDED


class GuardHandle:
    """What `guard` returns: tells what is in force, and takes it back; as a context manager, on the way out."""

    def __init__(self, model: Any, plan: Plan, entry: _Entry | None, *, owns: bool) -> None:
        """Hold what was planned and, unless it was a dry run, what was written."""
        self._plan = plan
        self._model = model
        self._transformer = find_transformer(model)
        self._entry = entry
        self._owns = owns

    @property
    def plan(self) -> Plan:
        """What is asked for: the last that was put in force by this handle, or what a dry run would do."""
        return self._entry.plan if self._entry else self._plan

    def __repr__(self) -> str:
        """Show the policy and the state."""
        return f"GuardHandle(policy={self.plan.policy.name!r}, state={self.verify().state})"

    @property
    def status(self) -> Status:
        """Requested against in force, for each category and site, read from the model now."""
        with self.drawing():  # or another thread could swap between the two readings
            found = self.verify(deep=True)
            in_force = (
                self._entry.undo.in_force()
                if self._entry and self._entry in _record(self._transformer).entries
                else MaskSet({})
            )
            return make_status(self.plan, in_force, found.state, found.faults)

    def verify(self, *, deep: bool = False) -> Verification:
        """Say what the guard is worth now.

        It detects tampering and accidents; it cannot prevent them, and it does not see changes of weights that are not
        masked.

        Args:
            deep: Read every masked element in the tensors that forward reads, and nothing else. Without, that is done
                only if a module or parameter was replaced, or a masked tensor moved or written to, since it was last
                done: cheap enough to ask before each picture. Only `deep` sees what was written through `Tensor.data`,
                as fusing an adapter does; ask for it now and then.
        """
        entry = self._entry
        if entry is None:
            return Verification(State.UNGUARDED, ())
        is_known = entry.seen is not None and entry.seen.is_unchanged()
        if not deep and is_known and entry in _record(self._transformer).entries and self._is_in_pipeline():
            return Verification(State.GUARDED, ())
        with self.drawing():  # or what is half written by another thread would be read
            return self._read(entry, _record(self._transformer))

    def _read(self, entry: _Entry, record: _Record) -> Verification:
        if entry.undo.is_done:
            return Verification(State.UNGUARDED, ())
        seen = entry.undo.watch()  # before the reading, so that a write that comes between is not missed
        faults = entry.undo.faults()
        reasons = [f"tensor {fault.tensor!r} {fault.reason}" for fault in faults]
        is_open = any(fault.is_open for fault in faults)
        if broken := self._broken_rules():
            reasons, is_open = broken + reasons, True
        if entry not in record.entries:
            reasons.append("the model was loaded and guarded anew since; this handle is of an older guard")
        state = State.DEGRADED if is_open else State.STALE if reasons else State.GUARDED
        entry.seen = seen if state is State.GUARDED else None
        return Verification(state, tuple(reasons))

    def undo(self) -> None:
        """Put back every bit that this guard switched off. Doing it twice does nothing more.

        Raises:
            ApplyError: Another policy was put on top and has to be undone first; or the weights were changed since, so
                that nothing was written.
        """
        with turns_of(self._transformer).writing():
            entry, record = self._entry, _record(self._transformer)
            if entry is None or entry.undo.is_done:
                return
            self._check_on_top(entry, record)
            entry.undo.restore_()
            entry.seen = None
            if entry in record.entries:
                record.entries.remove(entry)
            if not record.entries and hasattr(self._transformer, _ATTRIBUTE):
                delattr(self._transformer, _ATTRIBUTE)

    def swap(self, policy: str | os.PathLike[str] | Policy, *, store: StoreLike | Store | None = None) -> None:
        """Put another policy in the place of this one: all or nothing, and only weights that differ are written.

        No weight that both policies mask is on in between. Other threads draw inside of `drawing`, or their pictures
        may see some weights of the old policy and some of the new one.

        Args:
            policy: As for `guard`.
            store: As for `guard`.

        Raises:
            PolicyError: The policy is not valid, enforces nothing, or its budget does not suffice.
            ApplyError: Nothing of this guard is in force, another policy is on top of it, or the weights were changed
                since. The old policy stays in force.
            SafeFluxError: Another of the errors of `guard`; likewise.
        """
        turns, effective, masks = turns_of(self._transformer), load_policy(policy), open_store(store)
        with turns.planning():
            entry, record = self._entry, _record(self._transformer)
            if entry is None or entry.undo.is_done or entry not in record.entries:
                raise ApplyError("nothing of this guard is in force, so there is nothing to swap; use safeflux.guard")
            self._check_on_top(entry, record)
            plan = make_plan(effective, self._transformer, masks, standing=record.plans[:-1], base=entry.plan.base)
            _check_enforces(plan)
            _report_warnings(plan)
            with turns.writing():
                entry.undo = entry.undo.swap_(plan.masks)
                entry.plan, entry.seen = plan, entry.undo.watch()

    def drawing(self) -> AbstractContextManager[None]:
        """Draw inside of it where several threads use the model: guard, swap and undo wait until the picture is done.

            with handle.drawing():
                image = pipe(prompt).images[0]

        So every picture is drawn wholly under one state, that is to say as `verify` inside of it tells.
        """
        return turns_of(self._transformer).drawing()

    def _check_on_top(self, entry: _Entry, record: _Record) -> None:
        if entry in record.entries and entry is not record.entries[-1]:
            above = record.entries[-1].plan.policy.name
            raise ApplyError(f"policy {above!r} was put on top of {self.plan.policy.name!r}; undo {above!r} first")

    def receipt(self) -> dict[str, Any]:
        """Return the evidence of this moment as plain JSON values. Nothing in it claims that a model is safe."""
        with self.drawing():
            return make_receipt(self.plan, self.status, self._transformer)

    def __enter__(self) -> "GuardHandle":
        """Return itself: the guard is in force already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Undo, unless the same policy was in force before this handle was made: then leave it as it was found."""
        if self._owns:
            self.undo()

    def _is_in_pipeline(self) -> bool:
        """Whether a guarded pipeline still draws with the transformer that was guarded."""
        model = self._model
        return isinstance(model, torch.nn.Module) or uncompiled(model.transformer) is self._transformer

    def _broken_rules(self) -> list[str]:
        """What breaks the guard though all masked elements are zero: adapters, another transformer in the pipeline."""
        broken = []
        if not self._is_in_pipeline():
            broken.append("the pipeline holds another transformer now, which this guard never saw")
        try:
            check_adapters(self.plan.policy, self._transformer)
        except ModelError as error:
            broken.append(str(error))
        return broken


def guard(
    model: Any,
    policy: str | os.PathLike[str] | Policy = "strict",
    *,
    store: StoreLike | Store | None = None,
    dry_run: bool = False,
) -> GuardHandle:
    """Put a policy in force on a FLUX model, in place; nothing but zeros stays behind.

    All is resolved and checked before the first write, and a failure at any write leaves the model bit for bit as it
    was. The order that works: load, guard, then adapters, quantisation, offload, compile; then `verify`.

    Args:
        model: A FLUX pipeline of diffusers, or its transformer.
        policy: Name of a bundled policy, path of a policy file, or a `Policy`.
        store: A folder, or several, with mask files besides the bundled ones.
        dry_run: Plan and check only; nothing is written, and the handle says UNGUARDED.

    Returns:
        A handle with `status`, `verify`, `swap`, `undo` and `receipt`.

    Raises:
        PolicyError: The policy is not valid, enforces nothing, or its budget does not suffice.
        ModelError: Not a FLUX, or its weights cannot be written as they are; the message gives the order that works.
        StoreError: A mask set that the policy names is in no store.
        MaskMismatchError: A mask set was trained for another base model.
        MaskFileError: A mask file is damaged.
        ApplyError: A write failed; the model was put back.
    """
    effective = load_policy(policy)
    transformer = find_transformer(model)
    turns, masks = turns_of(transformer), open_store(store)
    with turns.drawing() if dry_run else turns.planning():
        record = _standing(transformer)
        plan = make_plan(effective, transformer, masks, standing=record.plans)
        if dry_run:
            return GuardHandle(model, plan, None, owns=False)
        _check_enforces(plan)
        _report_warnings(plan)
        for entry in record.entries:
            if entry.plan.policy == effective and entry.plan.masks == plan.masks:
                return GuardHandle(model, entry.plan, entry, owns=False)
        with turns.writing():
            undo = apply_masks_(transformer, plan.masks)
            entry = _Entry(plan, undo, undo.watch())
            record.entries.append(entry)
            setattr(transformer, _ATTRIBUTE, record)
        return GuardHandle(model, plan, entry, owns=True)


def _record(transformer: torch.nn.Module) -> _Record:
    """Return what is recorded on the transformer; an empty record if nothing is."""
    return transformer.__dict__.get(_ATTRIBUTE) or _Record()


def _standing(transformer: torch.nn.Module) -> _Record:
    """Return the record to build on. One that is no longer true is dropped: then the fingerprint decides."""
    record = _record(transformer)
    return _Record() if any(entry.undo.faults() for entry in record.entries) else record


def _check_enforces(plan: Plan) -> None:
    if not plan.masks:
        raise PolicyError(
            f"policy {plan.policy.name!r} enforces no category, so it would guard nothing; use dry_run=True to look"
        )


def _report_warnings(plan: Plan) -> None:
    for category in plan.categories.values():
        if category.action is Action.WARN:
            _log.warning(
                "policy %r: category %r is on `warn`, so its masks are not written", plan.policy.name, category.name
            )
