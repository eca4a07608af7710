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
        self._began, self._earlier = time.monotonic(), 3600 * state["hours"]
        return int(state["step"])
