"""Checkpoints of the recipe's stages: everything with a `state_dict`, the step, and torch's random state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


class Checkpoint:
    """Saves and loads a set of named objects that have `state_dict` and `load_state_dict`."""

    def __init__(self, path: Path, **parts: Any) -> None:
        self.path, self.parts = path, parts

    def save(self, step: int) -> None:
        """Write all parts; a kill leaves the old file or the new one."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        staged = self.path.with_suffix(".tmp")
        torch.save({"step": step, "rng": torch.get_rng_state(), **state}, staged)
        os.replace(staged, self.path)

    def load(self) -> int:
        """Load all parts if there is a checkpoint; the step to go on with (0 without one)."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["rng"])
        return int(state["step"])
