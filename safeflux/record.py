"""What is remembered on a guarded transformer, under one private attribute: the policies in force, in their order."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from safeflux.adapters import Admitted
from safeflux.apply import Undo
from safeflux.errors import ModelError
from safeflux.fingerprint import same_base
from safeflux.plan import Plan
from safeflux.watch import Watch
from safeflux.weights import fingerprint

_ATTRIBUTE = "_safeflux"
GONE = "neurons were cut out of this model (compact), and nothing brings them back; load the model again"
"""Why a model in which nothing can be undone takes no other policy."""


@dataclass(eq=False)
class Entry:
    """One policy in force on a model."""

    plan: Plan
    undo: Undo
    seen: Watch | None
    """The model as it was when all masked elements were last read; None if they were not all zero then."""
    admitted: Admitted = frozenset()
    """What adapters that the policy lists are recognised by."""


@dataclass(eq=False)
class Record:
    """All policies in force on a transformer, in the order in which they were put there."""

    entries: list[Entry] = field(default_factory=list)
    written: str = ""
    """Fingerprint of the weights as the last of our writes left them; empty where it could not be taken."""

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Their plans, in that order."""
        return tuple(entry.plan for entry in self.entries)

    @property
    def is_final(self) -> bool:
        """Whether neurons are gone, so that no other policy can be put in force."""
        return any(entry.undo.is_final for entry in self.entries)

    def has_moved(self, transformer: torch.nn.Module) -> bool:
        """Whether weights are others than our last write left them, as far as a sample of them can tell."""
        now = _fingerprint(transformer)
        return bool(now and self.written) and not same_base(now, self.written)

    @contextmanager
    def writing(self, transformer: torch.nn.Module) -> Iterator[None]:
        """Around a write of ours: what others changed before it is not forgotten."""
        has_moved = bool(self.entries) and self.has_moved(transformer)
        yield
        if self.entries and not has_moved:
            self.written = _fingerprint(transformer)

    def keep_on(self, transformer: torch.nn.Module) -> None:
        """Keep this record on the transformer for as long as anything is in force."""
        if self.entries:
            setattr(transformer, _ATTRIBUTE, self)
        elif hasattr(transformer, _ATTRIBUTE):
            delattr(transformer, _ATTRIBUTE)


def record_of(transformer: torch.nn.Module) -> Record:
    """Return what is recorded on the transformer; an empty record if nothing is."""
    return transformer.__dict__.get(_ATTRIBUTE) or Record()


def standing_record(transformer: torch.nn.Module) -> Record:
    """Return the record to build on. One that is no longer true is dropped: then the fingerprint decides."""
    record = record_of(transformer)
    return Record() if any(entry.undo.faults() for entry in record.entries) else record


def _fingerprint(transformer: torch.nn.Module) -> str:
    try:
        return fingerprint(transformer)
    except ModelError:  # offloaded, quantised or sharded
        return ""
