"""The handle of a guard: reports what is in force, refreshes it, swaps it for another policy, and undoes it."""

import logging
import os
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from safeflux.errors import ApplyError
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.store import Store, StoreLike, open_store
from safeflux.model.adapters import admit, check_adapters
from safeflux.model.apply import Undo
from safeflux.model.commit import Commit
from safeflux.model.planning import make_plan
from safeflux.model.receipt import make_receipt
from safeflux.model.record import ATTRIBUTE, GONE, Entry, Record, Standing, record_of, tidy
from safeflux.model.turn_lock import turns_of
from safeflux.model.verify import Subject, Verification, is_unchanged, read
from safeflux.model.watch.forward import reset_caches
from safeflux.model.watch.parts import named_parts
from safeflux.model.watch.pipeline import Rest, check_parts
from safeflux.model.weights import check_reached, find_transformer
from safeflux.plan.resolve import Plan
from safeflux.plan.status import State, Status, make_status
from safeflux.policy.load import Policy, load_policy
from safeflux.telemetry import span

_log = logging.getLogger(__name__)


class GuardHandle:
    """What `guard` returns: reports what is in force, and undoes it; as a context manager, it undoes it at the end."""

    def __init__(self, model: Any, plan: Plan, entry: Entry | None, *, owns: bool, rest: Rest | None = None) -> None:
        """Hold what was planned and, unless it was a dry run, what was written.

        Args:
            model: What was guarded.
            plan: What was asked for.
            entry: What was written.
            owns: Whether leaving the `with` undoes it.
            rest: The other parts of a pipeline as they were before the write; without, as they are.
        """
        self._plan = plan
        self._transformer = find_transformer(model)
        self._turns = turns_of(self._transformer)
        self._subject = Subject(model, self._transformer, rest or Rest(model if entry else self._transformer))
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
        """Requested and in force, for each category and site, read from the model now."""
        return self._turns.draw(self._status)  # or another thread could swap between the two readings

    def _status(self) -> Status:
        found = self.verify(deep=True)
        entry = self._entry
        is_standing = entry is not None and entry in record_of(self._transformer).entries
        in_force = entry.undo.in_force() if entry is not None and is_standing else MaskSet({})
        return make_status(self.plan, in_force, found.state, found.faults)

    @property
    def num_bytes_saved(self) -> int:
        """What is kept in memory for `undo`: the elements that were overwritten, in bytes."""
        return self._entry.undo.num_bytes_saved if self._entry else 0

    def verify(self, *, deep: bool = False, base: str | os.PathLike[str] | None = None) -> Verification:
        """Return the state of the guard now, and what is wrong.

        It detects tampering and accidents; it cannot prevent them.

        Args:
            deep: Read every masked element where forward reads it, and a secret sample of all other weights, whose
                change breaks a policy that does not let any adapter in. Without, they are read only if something
                moved since that was last done: a module or an attribute of it, a hook, processor or parameter, the
                place or version of a tensor, a part of the pipeline. That is cheap enough to ask before each picture.
                Only `deep` sees what torch keeps no version of: writes through `Tensor.data`, shared memory or
                `Tensor.numpy()`; and what lies inside of a module's attributes, such as its configuration. Ask for it
                now and then.
            base: The base model's files, a diffusers folder or one file: look deep, and compare every element of every
                weight of the transformer that no mask covers with them, one tensor in memory at a time. It finds what
                a sample finds by chance only, such as a change of a small block of a matrix, and what was changed
                before the guard. What it found stays a fault until a comparison no longer finds it.

        Raises:
            ModelError: `base` does not hold the guarded model's base, or its weights are packed; or neurons were cut
                out of the model, or the policy lets any adapter in.
        """
        entry = self._entry
        if entry is None:
            return Verification(State.UNGUARDED, (), self.plan.policy.name)
        if not deep and base is None and is_unchanged(self._subject, entry):
            return Verification(State.GUARDED, (), entry.plan.policy.name)
        # or what is half written by another thread would be read
        with span("verify", deep=deep or base is not None) as reading:
            found = self._turns.draw(lambda: read(self._subject, entry, base))
            reading.set(state=str(found.state), policy=found.policy)
        return found

    def undo(self) -> None:
        """Put back every bit that this guard switched off. Doing it twice does nothing more.

        Raises:
            ApplyError: Another policy was put on top and has to be undone first; or the weights were changed since, so
                that nothing was written.
            ModelError: A compiled graph, fused projections, or group offload in the midst of a picture draw from a
                copy of the weights, which nothing that is written now would reach.
        """
        if self._entry is not None:
            with span("undo", policy=self.plan.policy.name, policy_sha256=self.plan.policy.digest):
                self._turns.write(self._undo)

    def _undo(self) -> None:
        entry, record = self._entry, record_of(self._transformer)
        if entry is None or entry not in record.entries:
            if record.entries and entry is not None and record.sample is not entry.sample:
                raise ApplyError("cannot undo: the model was loaded and guarded anew since; undo that guard")
            return
        self._check_on_top(entry, record)
        check_reached(self._transformer)
        reset_caches(map(vars, named_parts(self._transformer).values()))
        entry.undo.restore_(Commit(vars(self._transformer), ATTRIBUTE, lambda: record.minus(entry)))
        entry.seen = None
        entry.undo.forget()
        tidy(self._transformer)
        _log.info("undo: %s", entry.plan.line)

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
        effective = load_policy(policy)
        masks = open_store(store).including(effective.stores)  # downloads now, not while pictures wait
        with span("swap", policy=effective.name, policy_sha256=effective.digest):
            self._turns.plan(lambda: self._swap(effective, masks))

    def _swap(self, effective: Policy, masks: Store) -> None:
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
        check_parts(effective, self._subject.model, entry.admitted)

        def commit(undo: Undo) -> Commit:
            return Commit(vars(entry), "now", lambda: Standing(plan, undo, entry.sample.masked_by(undo)))

        def write() -> None:
            reset_caches(map(vars, named_parts(self._transformer).values()))
            entry.seen = None
            entry.undo.swap_(plan.masks, commit)

        before = entry.plan
        self._turns.write(write)
        _log.info("swap: %s, in the place of policy %r", plan.line, before.policy.name)

    def refresh(self) -> None:
        """Switch off again what is on again though this policy masks it, in the tensors that the model has now.

        After fusing an adapter, or taking it out again: both write onto the zeros. All or nothing, for each policy that
        is in force. `undo` then puts back what was there, and what was fused since.

        Raises:
            ApplyError: Nothing of this guard is in force, or the weights were cast, or a write failed.
            ModelError: The weights cannot be written as they are, or the policy forbids the adapters that are there.
        """
        self._turns.write(self._refresh)

    def _refresh(self) -> None:
        entry = self._in_force("refresh")
        check_reached(self._transformer)
        reset_caches(map(vars, named_parts(self._transformer).values()))
        for one in record_of(self._transformer).entries:
            one.seen = None
            one.undo.refresh_()
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

        So every picture is drawn wholly under one state: the one that `verify` returns inside of the `with`.

        Entering it raises ApplyError where a writer does not end, and in a process that was forked while another
        thread was writing to the weights.
        """
        return self._turns.drawing()

    def _in_force(self, what: str) -> Entry:
        entry = self._entry
        if entry is None or entry not in record_of(self._transformer).entries:
            raise ApplyError(f"nothing of this guard is in force, so there is nothing to {what}; use safeflux.guard")
        return entry

    def _check_on_top(self, entry: Entry, record: Record) -> None:
        if entry in record.entries and entry is not record.entries[-1]:
            above = record.entries[-1].plan.policy.name
            raise ApplyError(f"policy {above!r} was put on top of {self.plan.policy.name!r}; undo {above!r} first")

    def receipt(self) -> dict[str, Any]:
        """Return the evidence of this moment as plain JSON values. Nothing in it claims that a model is safe."""
        return self._turns.draw(
            lambda: make_receipt(self.plan, self.status, self._transformer, self._subject.rest.names)
        )

    def __enter__(self) -> "GuardHandle":
        """Return itself: the guard is in force already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Undo, unless the same policy was in force before this handle was made: then leave it as it was found."""
        if self._owns:
            self.undo()
