"""What the masks cost: seconds and memory to learn, bytes to store, milliseconds to compose, guard and swap."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.mass.world import World
from benchmarks.timing import milliseconds, timed
from safeflux.masks.mask_set import MaskSet, compose
from safeflux.model.guard import guard
from safeflux.policy.load import Category, Policy

TIMES = 7


def costs_of(world: World, masks: Mapping[str, MaskSet], folder: Path) -> dict[str, Any]:
    """All of them; medians of several calls, in the number of threads that torch has.

    Args:
        world: The model.
        masks: Concept -> its mask.
        folder: Where the mask files are.
    """
    sizes = [(folder / f"{name}.safetensors").stat().st_size for name in masks]
    off = [one.count.masked for one in masks.values()]
    return {
        "learning": learning_of(folder.parent, len(masks)),
        "bytes": {"mean": statistics.mean(sizes), "most": max(sizes)},
        "bits_off": {"mean": statistics.mean(off), "most": max(off), "together": compose(*masks.values()).count.masked},
        "milliseconds": _times(world, masks, folder),
    }


def learning_of(folder: Path, concepts: int) -> dict[str, Any]:
    """Seconds and memory of each run of `learning.learn`; a concept's are its share of them all."""
    runs = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/seconds.json"))}
    spent = ("seconds", "cpu_seconds")
    return {
        "runs": {
            name: {"concepts": run["concepts"], **{key: run[key] / run["concepts"] for key in spent}}
            for name, run in runs.items()
        },
        "a_concept": {key: sum(run[key] for run in runs.values()) / concepts for key in spent},
        "peak_mib": max((run["peak_mib"] for run in runs.values()), default=0),
    }


def _times(world: World, masks: Mapping[str, MaskSet], folder: Path) -> dict[str, float]:
    every, names, pipe = list(masks.values()), list(masks), world.pipeline()
    whole, half = _policy(names), _policy(names[::2])
    taken: dict[str, list[float]] = {name: [] for name in ("guard", "verify", "swap", "undo")}
    for _ in range(TIMES):
        handle, guarded = timed(partial(guard, pipe.transformer, whole, store=folder))
        taken["guard"].append(guarded)
        taken["verify"].append(milliseconds(handle.verify))
        taken["swap"].append(milliseconds(partial(handle.swap, half, store=folder)))
        taken["undo"].append(milliseconds(handle.undo))
    taken["compose"] = [milliseconds(partial(compose, *every)) for _ in range(TIMES)]
    return {name: statistics.median(each) for name, each in taken.items()}


def _policy(names: Sequence[str]) -> Policy:
    return Policy(name="mass", categories={name: Category(masks=(name,)) for name in names})
