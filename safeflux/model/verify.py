"""The state of a guard: what forward reads where masks are, and what else breaks the policy."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from safeflux.errors import ModelError
from safeflux.model.adapters import check_adapters, wrapped_layers
from safeflux.model.forward_values import Values
from safeflux.model.record import Entry, Record, record_of
from safeflux.model.turn_lock import turns_of
from safeflux.model.watch.base_files import compare_whole, open_base
from safeflux.model.watch.forward import Makers, strangers
from safeflux.model.watch.pipeline import Rest
from safeflux.model.watch.snapshot import Snapshot
from safeflux.model.weights import uncompiled
from safeflux.plan.status import State
from safeflux.policy.load import Adapters

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    state: State
    faults: tuple[str, ...]
    policy: str
    """Name of the policy that was looked for."""

    @property
    def ok(self) -> bool:
        """True only for GUARDED."""
        return self.state is State.GUARDED


@dataclass(frozen=True)
class Subject:
    """What is looked at: what was guarded, and what else makes its pictures."""

    model: Any
    """A pipeline or a transformer."""
    transformer: torch.nn.Module
    """The transformer that was guarded."""
    rest: Rest

    @property
    def drawn(self) -> Any:
        """What draws now: the transformer, of a pipeline perhaps inside of `torch.compile`'s wrapper, or another."""
        return self.transformer if isinstance(self.model, torch.nn.Module) else self.model.transformer

    @property
    def is_in_pipeline(self) -> bool:
        """Whether a guarded pipeline still draws with the transformer that was guarded."""
        return uncompiled(self.drawn) is self.transformer


def is_unchanged(subject: Subject, entry: Entry) -> bool:
    """Whether nothing moved since this policy was last found in force, so that no weight has to be read."""
    return (
        entry.seen is not None
        and entry.seen.is_unchanged()
        and entry in record_of(subject.transformer).entries
        and entry.seen.drawn is subject.drawn
        and subject.rest.is_unchanged()
        and not turns_of(subject.transformer).are_torn
    )


def read(subject: Subject, entry: Entry, base: str | os.PathLike[str] | None = None) -> Verification:
    """Read every masked element and the samples of all else, and note what was seen if the policy is in force.

    Nobody writes meanwhile. The log gets a line when the state is another than it was.

    Args:
        subject: What is looked at.
        entry: What is to be in force on it.
        base: The base model's files, to compare all weights with.

    Raises:
        ModelError: They are not those of the base model, or cannot be compared with.
    """
    found = _read(subject, entry, base)
    before, entry.state = entry.state, found.state
    if found.state is not before:
        reason = "".join(f"; {fault}" for fault in found.faults[:1])
        level = logging.INFO if found.state in (State.GUARDED, State.UNGUARDED) else logging.WARNING
        _log.log(level, "verify: policy %r was %s and is %s%s", found.policy, before, found.state, reason)
    return found


def _read(subject: Subject, entry: Entry, base: str | os.PathLike[str] | None) -> Verification:
    transformer = subject.transformer
    record, name = record_of(transformer), entry.plan.policy.name
    if entry not in record.entries:
        if not record.entries or record.sample is entry.sample:
            return Verification(State.UNGUARDED, (), name)
        older = "the model was loaded and guarded anew since; this is an older guard"
        return Verification(State.STALE, (older,), name)
    try:
        now = Values(transformer)
    except ModelError as error:
        return Verification(State.STALE, (str(error),), name)
    drawn = subject.drawn if subject.is_in_pipeline else None
    seen = Snapshot(transformer, now, drawn)  # before the reading, so that a write that comes between is not missed
    if base is not None:
        _compare_whole(base, entry, record, now)
    faults = entry.undo.faults(now)
    broken: list[str] = []
    unknown = [f"tensor {fault.tensor!r} {fault.reason}" for fault in faults if not fault.is_open]
    for is_open, reason in _reasons(subject, entry, record, now, seen.makers):
        (broken if is_open else unknown).append(reason)
    broken += [f"tensor {fault.tensor!r} {fault.reason}" for fault in faults if fault.is_open]
    state = State.DEGRADED if broken else State.STALE if unknown else State.GUARDED
    entry.seen = seen if state is State.GUARDED else None
    if state is State.GUARDED:
        entry.settings.add(seen.makers)
    return Verification(state, (*broken, *unknown), name)


def _reasons(subject: Subject, entry: Entry, record: Record, now: Values, makers: Makers) -> Iterator[tuple[bool, str]]:
    """What else is wrong though all masked elements are zero: whether it breaks the guard, or only hides it."""
    policy, transformer = entry.plan.policy, subject.transformer
    if turns_of(transformer).are_torn:
        yield False, "this process was forked while the weights were being written; load the model again in it"
    if not subject.is_in_pipeline:
        yield True, "the pipeline holds another transformer now, which this guard never saw"
    try:
        check_adapters(policy, transformer, entry.admitted, parameters=now.parameters)
    except ModelError as error:
        yield True, str(error)
    if added := sorted(now.tensors.keys() - entry.sample.names):
        yield (
            policy.adapters is not Adapters.ALLOW,
            (
                f"the model has parameters that are not its base model's, such as {added[0]!r}, and policy "
                f"{policy.name!r} says `adapters: {policy.adapters}`"
            ),
        )
    if policy.adapters is not Adapters.ALLOW:
        yield from _changes(entry, record, transformer, now)
    yield from ((False, reason) for reason in (*strangers(makers), *entry.settings.other_functions()))
    if policy.adapters is not Adapters.ALLOW:
        yield from ((False, reason) for reason in entry.settings.other_parts(makers))
    broken, unknown = subject.rest.faults(policy, entry.admitted)
    yield from ((True, reason) for reason in broken)
    yield from ((False, reason) for reason in unknown)


def _compare_whole(base: str | os.PathLike[str], entry: Entry, record: Record, now: Values) -> None:
    """Note which weights are not the base model's; each look that follows finds them, until they are compared again."""
    policy = entry.plan.policy
    files = open_base(base, policy, record)
    found = compare_whole(files, record, now, rounded=policy.adapters is Adapters.ALLOWLIST)
    entry.sample.found_elsewhere = found.changed


def _changes(entry: Entry, record: Record, transformer: torch.nn.Module, now: Values) -> Iterator[tuple[bool, str]]:
    """Weights that no mask covers and that others changed; a listed adapter may be fused where it is loaded."""
    policy = entry.plan.policy
    is_listed = policy.adapters is Adapters.ALLOWLIST
    found = record.compare(transformer, now, rounded=is_listed)
    fused = {layer for layer, wrapped in wrapped_layers(now.modules).items() if wrapped.fused} if is_listed else set()
    for what, names in (
        ("have changed since the guard", found.changed),
        ("are not those of the base model's files", entry.sample.found_elsewhere),
    ):
        changed = [name for name in names if name.rpartition(".")[0] not in fused]
        if changed:
            more = f" and {len(changed) - 1} more" if changed[1:] else ""
            yield (
                True,
                f"weights that are not masked {what} ({changed[0]}{more}: an adapter was fused, or other weights "
                f"loaded), and policy {policy.name!r} says `adapters: {policy.adapters}`",
            )
    if found.unreadable:
        yield False, f"weights that are not masked cannot be read: {found.unreadable_names}"
