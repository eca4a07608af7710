"""What is remembered on a guarded transformer, under one private attribute: the policies in force, in their order.

A record never changes: another one takes its place, by one assignment (`commit.Commit`).
"""

from dataclasses import dataclass, replace

import torch

from safeflux.model.adapters import Admitted
from safeflux.model.apply import Undo
from safeflux.model.forward_values import Values
from safeflux.model.watch.sample import Difference, Sample
from safeflux.model.watch.settings import Settings
from safeflux.model.watch.snapshot import Snapshot
from safeflux.plan.resolve import Plan
from safeflux.plan.status import State

ATTRIBUTE = "_safeflux"
GONE = "neurons were cut out of this model (compact), and nothing brings them back; load the model again"
"""Why a model in which nothing can be undone takes no other policy."""


@dataclass(frozen=True, eq=False)
class Standing:
    """What a policy asks for, and what was written for it: changed together or not at all."""

    plan: Plan
    undo: Undo
    masked: torch.Tensor
    """Which places of the record's sample it switches off (`Sample.masked_by`)."""


@dataclass(eq=False)
class Entry:
    """One policy in force on a model. A swap gives it another `now`."""

    now: Standing
    sample: Sample
    """The record's, by which a record of a model that was loaded anew differs from this one's."""
    settings: Settings
    """What the transformer's parts and functions were set to when it was guarded."""
    admitted: Admitted = frozenset()
    """What adapters that the policy lists are recognised by."""
    state: State = State.GUARDED
    """What was last found; it begins when the policy was written and read back."""
    seen: Snapshot | None = None
    """The model as it was when it was last read and the policy found in force; None if it was not."""

    @property
    def plan(self) -> Plan:
        """What is asked for."""
        return self.now.plan

    @property
    def undo(self) -> Undo:
        """What puts the weights back."""
        return self.now.undo


@dataclass(frozen=True, eq=False)
class Record:
    """All policies in force on a transformer, in the order in which they were put there."""

    entries: tuple[Entry, ...] = ()
    sample: Sample | None = None
    """Of the weights as they were before the first of these policies."""

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Their plans, in that order."""
        return tuple(entry.plan for entry in self.entries)

    @property
    def is_final(self) -> bool:
        """Whether neurons are gone, so that no other policy can be put in force."""
        return any(entry.undo.is_final for entry in self.entries)

    def plus(self, entry: Entry, sample: Sample) -> "Record":
        """This one with another policy on top."""
        return replace(self, entries=(*self.entries, entry), sample=sample)

    def minus(self, entry: Entry) -> "Record":
        """This one without a policy."""
        return replace(self, entries=tuple(each for each in self.entries if each is not entry))

    def compare(self, transformer: torch.nn.Module, now: Values, *, rounded: bool) -> Difference:
        """Say which weights, masked ones aside, are not as they were before the first policy."""
        if self.sample is None:
            return Difference((), ())
        masked = torch.stack([entry.now.masked for entry in self.entries]).any(dim=0)
        return self.sample.compare(transformer, masked, rounded=rounded, now=now)


def record_of(transformer: torch.nn.Module) -> Record:
    """Return what is recorded on the transformer; an empty record if nothing is."""
    return transformer.__dict__.get(ATTRIBUTE) or Record()


def tidy(transformer: torch.nn.Module) -> None:
    """Leave nothing on a transformer on which no policy is in force."""
    if not record_of(transformer).entries:
        vars(transformer).pop(ATTRIBUTE, None)


def standing_record(transformer: torch.nn.Module) -> Record:
    """Return the record to build on. One that is no longer true is dropped: then the fingerprint decides."""
    record = record_of(transformer)
    return Record() if any(entry.undo.faults() for entry in record.entries) else record
