"""One way to keep targets out of a model: what it needs, what it makes, and what its paper says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers.material import Material
from safeflux.masks.mask_set import MaskSet
from safeflux.reference.vocabulary import Target

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """What a method made for some targets.

    Attributes:
        drawing: Given the pipeline, what draws under the method while the context is open. The pipeline is put back.
        num_bytes: What has to be stored for it.
        state: What `Method.combine` takes of it.
        facts: Other figures of it, for the report.
        masks: The single bits that it switches off, where that is all it does.
    """

    drawing: Callable[[Any], AbstractContextManager[Any]]
    num_bytes: int
    state: Any = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    masks: MaskSet = field(default_factory=lambda: MaskSet({}))


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        paper: Where it is from.
        carried: What had to change for rectified flow and a transformer that sees text and image together.
        grid: The settings that are tried on validation; as many for each method.
        make: Makes it for some targets.
        combine: Puts together what was made for single targets, without training; None where all have to be made
            together again.
        undo: How it is undone, in a few words.
        is_outside: Whether it acts outside of the weights, which stay as they are.
        trained_by: The command that made its files before, where `make` only reads them: its time is not measured here.
    """

    paper: str
    carried: str
    grid: Sequence[Settings]
    make: Callable[[Material, Sequence[Target], Settings], Made]
    combine: Callable[[Material, Sequence[Made], Settings], Made] | None = None
    undo: str = "no: the weights were changed"
    is_outside: bool = False
    trained_by: str = ""
