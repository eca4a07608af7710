"""The handle of a guard: what is in force now, refreshed, swapped for another policy, and taken back."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from safeflux.adapters import admit, check_adapters
from safeflux.errors import ApplyError, ModelError
from safeflux.masks import MaskSet
from safeflux.modelplan import make_plan
from safeflux.plan import Plan
from safeflux.policy import Adapters, Policy, load_policy
from safeflux.receipt import make_receipt
from safeflux.record import GONE, Entry, Record, record_of
from safeflux.status import State, Status, make_status
from safeflux.store import Store, StoreLike, open_store
from safeflux.turns import turns_of
from safeflux.weights import check_reached, find_transformer, uncompiled


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

    def __init__(self, model: Any, plan: Plan, entry: Entry | None, *, owns: bool) -> None:
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
                if self._entry and self._entry in record_of(self._transformer).entries
                else MaskSet({})
            )
            return make_status(self.plan, in_force, found.state, found.faults)

    @property
    def num_bytes_saved(self) -> int:
        """What is kept in memory for `undo`: the elements that were overwritten, in bytes."""
        return self._entry.undo.num_bytes_saved if self._entry else 0

    def verify(self, *, deep: bool = False) -> Verification:
        """Say what the guard is worth now.

        It detects tampering and accidents; it cannot prevent them.

        Args:
            deep: Read every masked element where forward reads it, and a sample of all other weights, whose change
                breaks a policy that lets no adapter in. Without, the masked elements alone are read, and only if a
                module or parameter was replaced, a masked tensor moved or written to, or an adapter fused, since that
                was last done: cheap enough to ask before each picture. Only `deep` sees what was written through
                `Tensor.data`; ask for it now and then.
        """
        entry = self._entry
        if entry is None:
            return Verification(State.UNGUARDED, ())
        is_known = entry.seen is not None and entry.seen.is_unchanged()
        if not deep and is_known and entry in record_of(self._transformer).entries and self._is_in_pipeline():
            return Verification(State.GUARDED, ())
        with self.drawing():  # or what is half written by another thread would be read
            return self._read(entry, record_of(self._transformer), deep)

    def _read(self, entry: Entry, record: Record, deep: bool) -> Verification:
        if entry.undo.is_done:
            return Verification(State.UNGUARDED, ())
        seen = entry.undo.watch()  # before the reading, so that a write that comes between is not missed
        faults = entry.undo.faults()
        reasons = [f"tensor {fault.tensor!r} {fault.reason}" for fault in faults]
        is_open = any(fault.is_open for fault in faults)
        if broken := self._broken_rules(entry, record, deep):
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
            ModelError: A compiled graph, or group offload in the midst of a picture, draws from a copy of the weights,
                which nothing that is written now would reach.
        """
        with turns_of(self._transformer).writing():
            entry, record = self._entry, record_of(self._transformer)
            if entry is None or entry.undo.is_done:
                return
            self._check_on_top(entry, record)
            check_reached(self._transformer)
            with record.writing(self._transformer):
                entry.undo.restore_()
                if entry in record.entries:
                    record.entries.remove(entry)
            entry.seen = None
            record.keep_on(self._transformer)

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
            entry, record = self._in_force("swap"), record_of(self._transformer)
            self._check_on_top(entry, record)
            if record.is_final:
                raise ApplyError(f"cannot swap: {GONE}, and guard it with the other policy")
            plan = make_plan(
                effective,
                self._transformer,
                masks,
                standing=record.plans[:-1],
                base=entry.plan.base,
                admitted=entry.admitted,
            )
            plan.check_enforces()
            with turns.writing(), record.writing(self._transformer):
                entry.undo = entry.undo.swap_(plan.masks)
                entry.plan, entry.seen = plan, entry.undo.watch()

    def refresh(self) -> None:
        """Switch off again what is on again though this policy masks it, in the tensors that the model has now.

        After fusing an adapter, or taking it out again: both write onto the zeros. All or nothing, for each policy that
        is in force. `undo` then puts back what was there, and what was fused since.

        Raises:
            ApplyError: Nothing of this guard is in force, or the weights were cast, or a write failed.
            ModelError: The weights cannot be written as they are, or the policy forbids the adapters that are there.
        """
        with turns_of(self._transformer).writing():
            entry = self._in_force("refresh")
            check_reached(self._transformer)
            for one in record_of(self._transformer).entries:
                one.undo.refresh_()
                one.seen = None
            check_adapters(self.plan.policy, self._transformer, entry.admitted)

    def admit(self, *adapters: str | os.PathLike[str]) -> None:
        """Let adapter files in that the policy lists by sha256 (`adapters: allowlist`), for as long as it is in force.

        Args:
            adapters: Their safetensors files, in the format of PEFT and diffusers.

        Raises:
            ModelError: The policy does not list a file, or it cannot be read.
            ApplyError: Nothing of this guard is in force.
        """
        entry = self._in_force("let in")
        entry.admitted |= admit(self.plan.policy, *adapters)

    def drawing(self) -> AbstractContextManager[None]:
        """Draw inside of it where several threads use the model: guard, swap and undo wait until the picture is done.

            with handle.drawing():
                image = pipe(prompt).images[0]

        So every picture is drawn wholly under one state, that is to say as `verify` inside of it tells.
        """
        return turns_of(self._transformer).drawing()

    def _in_force(self, what: str) -> Entry:
        entry = self._entry
        if entry is None or entry.undo.is_done or entry not in record_of(self._transformer).entries:
            raise ApplyError(f"nothing of this guard is in force, so there is nothing to {what}; use safeflux.guard")
        return entry

    def _check_on_top(self, entry: Entry, record: Record) -> None:
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

    def _broken_rules(self, entry: Entry, record: Record, deep: bool) -> list[str]:
        """What breaks the guard though all masked elements are zero: adapters, another transformer in the pipeline."""
        broken = []
        if not self._is_in_pipeline():
            broken.append("the pipeline holds another transformer now, which this guard never saw")
        try:
            check_adapters(self.plan.policy, self._transformer, entry.admitted)
        except ModelError as error:
            broken.append(str(error))
        if deep and self.plan.policy.adapters is Adapters.DENY and record.has_moved(self._transformer):
            broken.append(
                "weights that are not masked have changed since the guard (an adapter was fused, or other weights "
                f"loaded), and policy {self.plan.policy.name!r} says `adapters: deny`"
            )
        return broken
