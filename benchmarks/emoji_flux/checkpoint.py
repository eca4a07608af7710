"""Checkpoints of the recipe's stages: everything with a `state_dict`, the step, the time, and torch's random state."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch


class Checkpoint:
    """Saves and loads a set of named objects that have `state_dict` and `load_state_dict`."""

    def __init__(self, path: Path, **parts: Any) -> None:
        self.path, self.parts = path, parts
        self._began, self._earlier = time.monotonic(), 0.0

    def begin_after(self, hours: float) -> None:
        """Count the hours of a run that this one goes on from."""
        self._began, self._earlier = time.monotonic(), 3600 * hours

    @property
    def hours(self) -> float:
        """Time since the stage began, the runs before this one included."""
        return (self._earlier + time.monotonic() - self._began) / 3600

    def save(self, step: int) -> None:
        """Write all parts; a kill leaves the old file or the new one."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        staged = self.path.with_suffix(".tmp")
        torch.save({"step": step, "hours": self.hours, "rng": torch.get_rng_state(), **state}, staged)
        os.replace(staged, self.path)

    def load(self) -> int:
        """Load all parts if there is a checkpoint; the step to go on with (0 without one)."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["rng"])
        self.begin_after(state["hours"])
        return int(state["step"])


class Every:
    """Says when the time has come again."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def is_due(self) -> bool:
        """Whether so many seconds have gone by since it was last true, or since the start."""
        due = time.monotonic() - self._last >= self._seconds
        if due:
            self._last = time.monotonic()
        return due
