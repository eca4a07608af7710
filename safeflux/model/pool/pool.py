"""One policy a request: several policies for one loaded model, switched between pictures."""

import logging
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from safeflux.errors import ApplyError
from safeflux.masks.store import Store, StoreLike, open_store
from safeflux.model.adapters import admit
from safeflux.model.commit import Commit
from safeflux.model.handle import GuardHandle
from safeflux.model.pool.members import Member, Members, load_all, plan_all, replace_
from safeflux.model.pool.queue import Queue
from safeflux.model.pool.under import Under
from safeflux.model.record import ATTRIBUTE, GONE, Entry, record_of, standing_record
from safeflux.model.turn_lock import turns_of
from safeflux.model.verify import Verification
from safeflux.model.watch.forward import Makers, reset_caches
from safeflux.model.watch.parts import named_parts
from safeflux.model.watch.pipeline import Rest
from safeflux.model.watch.sample import Sample
from safeflux.model.watch.settings import Settings
from safeflux.model.weights import check_not_compiled, check_reached, find_transformer
from safeflux.plan.resolve import Plan
from safeflux.policy.load import Policy
from safeflux.telemetry import span

_log = logging.getLogger(__name__)


class PolicyPool:
    """Several policies for one model, each request drawn under its own; as a context manager, undone on the way out.

        pool = safeflux.PolicyPool(pipe, {"adult": "moderate", "family": "family"})
        with pool.under("family"):
            image = pipe(prompt).images[0]

    The differences between the policies are computed once and kept beside the weights, and a switch writes only them.
    There is always one policy in force, at first the first one. Whoever draws outside of `under` draws under whichever
    that is.
    """

    def __init__(
        self,
        model: Any,
        policies: Mapping[str, str | os.PathLike[str] | Policy],
        *,
        store: StoreLike | Store | None = None,
        adapters: Sequence[str | os.PathLike[str]] = (),
        keys: Sequence[str | os.PathLike[str]] = (),
        at_once: int = 1,
        patience: float = 2.0,
    ) -> None:
        """Put the first policy in force, as `guard` does, and prepare the switches to the others.

        Each policy is put in force once and read back. Guards that are in force already stay so, under all of them.
        The order that works is that of `guard`: load, make the pool, then offload or compile.

        Args:
            model: A FLUX pipeline of diffusers, or its transformer.
            policies: Each policy as for `guard`, under the name that `under` takes; at most 64. All say the same of
                adapters, since a model carries them under every policy.
            store: As for `guard`.
            adapters: As for `guard`.
            keys: As for `guard`.
            at_once: How many pictures may be drawn at the same time. More than one needs a pipeline for each thread,
                since a pipeline's scheduler counts its steps; they may share the transformer.
            patience: Seconds for which a policy stays in force while a request for another waits.

        Raises:
            SafeFluxError: The errors of `guard`, for any of the policies; the model is as before.
        """
        masks = open_store(store, keys)
        effective = load_all(policies, masks)
        if at_once < 1 or patience < 0:
            raise ApplyError(
                f"expected at_once of at least 1 and patience of at least 0, got {at_once} and {patience:g}"
            )
        self._model, self._transformer, self._store = model, find_transformer(model), masks
        check_not_compiled(self._transformer)
        self._owns = list(map(vars, named_parts(self._transformer).values()))
        self._turns = turns_of(self._transformer)
        with span("pool", policies=", ".join(effective)):
            self._turns.plan(lambda: self._open(effective, adapters))
        self._queue = Queue(self._turns, self._name_in_force, self._switch, at_once=at_once, patience=patience)

    def _open(self, policies: Mapping[str, Policy], adapters: Sequence[str | os.PathLike[str]]) -> None:
        record = standing_record(self._transformer)
        if record.is_final:
            raise ApplyError(f"cannot make a pool: {GONE}")
        admitted = admit(next(iter(policies.values())), *adapters)
        plans = plan_all(policies, self._model, self._store, standing=record.plans, base=None, admitted=admitted)
        rest = Rest(self._model)

        def write() -> Entry:
            reset_caches(self._owns)
            sample = record.sample or Sample(self._transformer)
            members = Members(self._transformer, plans, sample)
            first = members[next(iter(plans))]
            entry = Entry(first, sample, Settings(Makers(self._transformer)), admitted)
            first.undo.fill_(Commit(vars(self._transformer), ATTRIBUTE, lambda: record.plus(entry, sample)))
            return entry

        self._entry = self._turns.write(write)
        self._handle = GuardHandle(self._model, self._entry.plan, self._entry, owns=True, rest=rest)
        try:
            self._turns.write(self._read_back)
        except BaseException:
            self._handle.undo()
            raise
        _log.info("pool: %s; in force: %s", ", ".join(map(repr, plans)), self._entry.plan.line)

    def _read_back(self) -> None:
        """Put each policy in force and read it, the first one last."""
        for name in reversed(self._member.members.names):
            self._switch(name)
            for fault in self._entry.undo.faults():
                raise ApplyError(f"policy {name!r} of the pool: tensor {fault.tensor!r} {fault.reason}")

    @property
    def _member(self) -> Member:
        """What is in force, or was before the pool was closed."""
        now = self._entry.now
        assert isinstance(now, Member)  # nothing but this pool sets it: the handle's `swap` is refused
        return now

    @property
    def plans(self) -> dict[str, Plan]:
        """What each policy asks for, by its name in the pool."""
        return self._member.members.plans

    @property
    def policies(self) -> dict[str, Policy]:
        """The policies by their names in the pool."""
        return {name: plan.policy for name, plan in self.plans.items()}

    @property
    def in_force(self) -> str:
        """Name of the policy in force; inside of `under` it is the one that was asked for.

        Raises:
            ApplyError: None is: the pool was closed, or the model loaded anew.
        """
        return self._name_in_force()

    @property
    def handle(self) -> GuardHandle:
        """The handle of the guard, with `status`, `verify` and `drawing`; its `swap` and `refresh` are refused."""
        return self._handle

    @property
    def num_waiting(self) -> int:
        """How many requests wait for their turn."""
        return self._queue.num_waiting

    @property
    def num_bytes_kept(self) -> int:
        """What the differences between the policies take in memory, in bytes.

        Beside it are kept, as for a guard, the elements that all policies switch off (`GuardHandle.num_bytes_saved`).
        """
        return self._member.members.layers.num_bytes

    def under(self, policy: str, *, timeout: float | None = None) -> Under:
        """Draw inside of it: a picture under one of the policies, wholly, whatever other threads draw under.

        Threads that ask for the policy in force are let in first, at most `at_once` at a time, in the order in which
        they came; for another policy it is switched when nobody waits for this one, or when its time is up
        (`patience`). A thread that is inside may enter again, for the same policy.

        Args:
            policy: Its name in the pool.
            timeout: Seconds to wait at most; without, as long as it takes.

        Returns:
            A context manager that gives the handle, whose `verify`, `receipt` and `plan` speak of this policy.

        Raises:
            ApplyError: There is no such policy. On entering: the pool is not in force any more, the weights were
                changed by others so that it cannot be switched, this thread draws under another policy, or `timeout`
                seconds went by.
        """
        self._member.members[policy]  # that there is one
        return Under(self._queue, policy, timeout, self._handle)

    def verify(self, *, deep: bool = False, base: str | os.PathLike[str] | None = None) -> Verification:
        """Return the name and the state of the policy in force, as `GuardHandle.verify` does."""
        return self._handle.verify(deep=deep, base=base)

    def receipt(self) -> dict[str, Any]:
        """Return the evidence of this moment as `GuardHandle.receipt` does, with the pool's policies beside it."""

        def make() -> dict[str, Any]:
            digests = {name: policy.digest for name, policy in self.policies.items()}
            return self._handle.receipt() | {"pool": {"in_force": self._name_in_force(), "policies": digests}}

        return self._turns.draw(make)

    def replace(
        self, policies: Mapping[str, str | os.PathLike[str] | Policy], *, store: StoreLike | Store | None = None
    ) -> None:
        """Put other policies in the place of the pool's, all or nothing.

        Pictures that are being drawn are finished first, under their own policy; all others wait. Requests that wait
        are drawn under the new policy of the name that they asked for, and get an error where there is none. What is
        in force is the policy of the same name as before, or the first one. Whoever draws outside of `under` may see
        weights of the base model meanwhile.

        Args:
            policies: As for the pool.
            store: As for the pool; without, its own.

        Raises:
            ApplyError: The pool is not in force any more, another policy is on top of it, the weights were changed by
                others, or a write failed. The old policies stay.
            SafeFluxError: Another of the errors of `guard`, for any of the policies; likewise.
        """
        masks = self._store if store is None else open_store(store)
        effective = load_all(policies, masks)
        with span("replace", policies=", ".join(effective)):
            self._turns.plan(lambda: self._replace(effective, masks))
        self._queue.wake()

    def check(self, policies: Mapping[str, str | os.PathLike[str] | Policy]) -> dict[str, Plan]:
        """Plan what `replace` would put in force with the pool's own store, and write nothing.

        Raises:
            SafeFluxError: The errors of `replace`, but for those of writes.
        """
        effective = load_all(policies, self._store)
        return self._turns.plan(lambda: self._plan(effective, self._store))

    def _plan(self, policies: Mapping[str, Policy], masks: Store) -> dict[str, Plan]:
        entry = self._entry
        self._name_in_force()  # that one is
        self._check_on_top()
        standing = record_of(self._transformer).plans[:-1]
        return plan_all(policies, self._model, masks, standing=standing, base=entry.plan.base, admitted=entry.admitted)

    def _replace(self, policies: Mapping[str, Policy], masks: Store) -> None:
        plans, name = self._plan(policies, masks), self._name_in_force()
        first = name if name in plans else next(iter(plans))

        def write() -> None:
            check_reached(self._transformer)
            reset_caches(self._owns)
            entry = self._entry
            entry.seen = None
            replace_(self._member, lambda: Members(self._transformer, plans, entry.sample), first, vars(entry))

        self._turns.write(write)
        _log.info("pool: %s; in force: %s", ", ".join(map(repr, plans)), self._entry.plan.line)

    def close(self) -> None:
        """Put every bit back. Requests that wait get an error; doing it twice does nothing more.

        Raises:
            SafeFluxError: The errors of `GuardHandle.undo`.
        """
        self._handle.undo()
        self._queue.wake()

    def __enter__(self) -> "PolicyPool":
        """Return itself: a policy is in force already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _name_in_force(self) -> str:
        member = self._member
        if self._entry not in record_of(self._transformer).entries:
            raise ApplyError("no policy of this pool is in force: it was closed, or the model was loaded anew")
        return member.name

    def _check_on_top(self) -> None:
        above = record_of(self._transformer).entries[-1]
        if above is not self._entry:
            raise ApplyError(f"policy {above.plan.policy.name!r} was put on top of the pool; undo it first")

    def _switch(self, policy: str) -> None:
        """Put a policy in force while nobody draws."""
        name, entry, old = self._name_in_force(), self._entry, self._member
        self._check_on_top()
        new = old.members[policy]
        reset_caches(self._owns)
        seen, entry.seen = entry.seen, None
        num_written = old.undo.switch_(new.undo, Commit(vars(entry), "now", lambda: new))
        if seen is not None:
            seen.count(num_written)
            entry.seen = seen
        _log.debug("switch: policy %r of the pool in the place of %r", policy, name)
