"""One policy a request: several policies for one loaded model, switched between pictures."""

import logging
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from safeflux.errors import ApplyError, PolicyError
from safeflux.masks.store import Store, StoreLike, open_store
from safeflux.model.adapters import admit
from safeflux.model.commit import Commit
from safeflux.model.handle import GuardHandle
from safeflux.model.index_sets import MOST_SETS
from safeflux.model.planning import make_plan
from safeflux.model.pool.layers import Layers
from safeflux.model.pool.pooled import Pooled
from safeflux.model.pool.queue import Queue, Request
from safeflux.model.record import ATTRIBUTE, GONE, Entry, Standing, record_of, standing_record
from safeflux.model.turn_lock import turns_of
from safeflux.model.verify import Verification
from safeflux.model.watch.forward import reset_caches
from safeflux.model.watch.pipeline import Rest
from safeflux.model.watch.sample import Sample
from safeflux.model.weights import check_not_compiled, find_transformer
from safeflux.plan.resolve import Plan
from safeflux.policy.load import Policy, load_policy

_log = logging.getLogger(__name__)


class Under:
    """A picture's time under one policy, as a context manager. One that is dropped ends, whatever became of `with`."""

    def __init__(self, queue: Queue, policy: str, timeout: float | None, handle: GuardHandle) -> None:
        """Queue nowhere yet."""
        self._queue, self._policy, self._timeout, self._handle = queue, policy, timeout, handle
        self._request: Request | None = None

    def __enter__(self) -> GuardHandle:
        """Wait for the policy's turn, and return the handle of what is in force."""
        try:
            self._request = Request(self._policy)
            self._queue.enter(self._request, self._timeout)
        except BaseException:
            self._end()
            raise
        return self._handle

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the next request draw."""
        self._end()

    def __del__(self) -> None:
        """End what was left without `__exit__`."""
        self._end()

    def _end(self) -> None:
        if self._request is not None:
            self._queue.leave(self._request)


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
        effective = {name: load_policy(policy) for name, policy in policies.items()}
        _check(effective, at_once, patience)
        self._transformer = find_transformer(model)
        check_not_compiled(self._transformer)
        self._modules = list(self._transformer.modules())
        self._turns, masks = turns_of(self._transformer), open_store(store, keys)
        self._policies = effective
        self._turns.plan(lambda: self._open(model, masks, adapters))
        self._queue = Queue(self._turns, self._name_in_force, self._switch, at_once=at_once, patience=patience)

    def _open(self, model: Any, masks: Store, adapters: Sequence[str | os.PathLike[str]]) -> None:
        record = standing_record(self._transformer)
        if record.is_final:
            raise ApplyError(f"cannot make a pool: {GONE}")
        admitted = admit(next(iter(self._policies.values())), *adapters)
        plans: dict[str, Plan] = {}
        base = None
        for name, policy in self._policies.items():
            plan = make_plan(policy, model, masks, standing=record.plans, base=base, admitted=admitted)
            plan.check_enforces()
            plans[name], base = plan, plan.base
        rest = Rest(model)

        def write() -> Entry:
            reset_caches(self._modules)
            sample = record.sample or Sample(self._transformer)
            self._layers = Layers(self._transformer, {name: plan.masks for name, plan in plans.items()})
            self._undos = {name: Pooled(self._transformer, plan, self._layers, name) for name, plan in plans.items()}
            self._standings = {n: Standing(plans[n], undo, sample.masked_by(undo)) for n, undo in self._undos.items()}
            self._names = {standing: name for name, standing in self._standings.items()}
            first = next(iter(plans))
            entry = Entry(self._standings[first], sample, admitted)
            self._undos[first].fill_(Commit(vars(self._transformer), ATTRIBUTE, lambda: record.plus(entry, sample)))
            return entry

        self._entry = self._turns.write(write)
        self._handle = GuardHandle(model, self._entry.plan, self._entry, owns=True, rest=rest)
        try:
            self._turns.write(self._read_back)
        except BaseException:
            self._handle.undo()
            raise
        _log.info("pool: %s; in force: %s", ", ".join(map(repr, self._policies)), self._entry.plan.line)

    def _read_back(self) -> None:
        """Put each policy in force and read it, the first one last."""
        for name in reversed(self._policies):
            self._switch(name)
            for fault in self._entry.undo.faults():
                raise ApplyError(f"policy {name!r} of the pool: tensor {fault.tensor!r} {fault.reason}")

    @property
    def policies(self) -> dict[str, Policy]:
        """The policies by their names in the pool."""
        return dict(self._policies)

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
        return self._layers.num_bytes

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
        if policy not in self._policies:
            raise ApplyError(f"no policy {policy!r} in the pool; it has {', '.join(map(repr, self._policies))}")
        return Under(self._queue, policy, timeout, self._handle)

    def verify(self, *, deep: bool = False) -> Verification:
        """Say what the policy in force is worth now, and which it is; as `GuardHandle.verify`."""
        return self._handle.verify(deep=deep)

    def receipt(self) -> dict[str, Any]:
        """Return the evidence of this moment as `GuardHandle.receipt` does, with the pool's policies beside it."""

        def make() -> dict[str, Any]:
            digests = {name: policy.digest for name, policy in self._policies.items()}
            return self._handle.receipt() | {"pool": {"in_force": self._name_in_force(), "policies": digests}}

        return self._turns.draw(make)

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
        now = self._entry.now
        if self._entry not in record_of(self._transformer).entries:
            raise ApplyError("no policy of this pool is in force: it was closed, or the model was loaded anew")
        return self._names[now]

    def _switch(self, policy: str) -> None:
        """Put a policy in force while nobody draws."""
        name, entry = self._name_in_force(), self._entry
        above = record_of(self._transformer).entries[-1]
        if above is not entry:
            raise ApplyError(f"policy {above.plan.policy.name!r} was put on top of the pool; undo it first")
        reset_caches(self._modules)
        seen, entry.seen = entry.seen, None
        commit = Commit(vars(entry), "now", lambda: self._standings[policy])
        num_written = self._undos[name].switch_(self._undos[policy], commit)
        if seen is not None:
            seen.count(num_written)
            entry.seen = seen
        _log.debug("switch: policy %r of the pool in the place of %r", policy, name)


def _check(policies: Mapping[str, Policy], at_once: int, patience: float) -> None:
    if not 1 <= len(policies) <= MOST_SETS:
        raise PolicyError(f"a pool has 1 to {MOST_SETS} policies, got {len(policies)}")
    if at_once < 1 or patience < 0:
        raise ApplyError(f"expected at_once of at least 1 and patience of at least 0, got {at_once} and {patience:g}")
    (first, policy), *others = policies.items()
    for name, other in others:
        for field in ("adapters", "adapter_allowlist"):
            mine, its = getattr(policy, field), getattr(other, field)
            if mine != its:
                raise PolicyError(
                    f"policies of a pool say the same of adapters, which the model carries under each of them; "
                    f"{first!r} says {field}: {mine}, {name!r} says {field}: {its}"
                )
