"""Runs of the trainer that make the masks: groups of concepts, all of them together, then groups beside the others."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safeflux.trainer.asked.config import TrainConfig, make_config
from safeflux.trainer.asked.options import options_of
from safeflux.trainer.run.session import run

from benchmarks.mass.world import World
from safeflux.disk.atomic import write_atomically

PARTS = 8
"""Concepts of a batch of 32 prompts."""


def _settings(
    enough: float, alone: float, preserve_alone: float, within: bool = False, **saliency: float
) -> dict[str, Any]:
    many = {"enough": enough, "alone": alone, "preserve_alone": preserve_alone, "within_initial": within}
    return {"many": {"parts": PARTS, **many}, "saliency": {"last_rounds": 0, **saliency}}


GROUP = _settings(
    enough=0.12,
    alone=0.9,
    preserve_alone=0.5,
    rounds=14,
    warm_up=2,
    erase_batches=3,
    preserve_batches=4 * PARTS,
    bits_off=60,
    bits_on=20,
    preserve_budget=0.01,
)
"""Of a group, from masks that keep everything. Each learns to erase alone; what all of them spoil is repaired later."""
TOGETHER = _settings(
    enough=0.12,
    alone=0.9,
    preserve_alone=0.1,
    within=True,
    rounds=16,
    warm_up=2,
    erase_batches=2,
    preserve_batches=16 * PARTS,
    bits_off=30,
    bits_on=50,
    preserve_budget=0.03,
)
"""Of all masks, which exchange bits among those that are off in any of them; they preserve together, erase alone."""
BESIDE = _settings(
    enough=0.08,
    alone=0.4,
    preserve_alone=0.3,
    rounds=5,
    warm_up=1,
    erase_batches=4,
    preserve_batches=4 * PARTS,
    bits_off=80,
    bits_on=20,
    preserve_budget=0.05,
)
"""Of a group again, beside the masks of all others, which bring some of its concepts back: bits that no mask had off so
far keep them away."""
PAIRS = {"group": (96, 1024), "together": (32, 2048)}
"""Erase prompts a concept, and prompts to preserve."""
_NEVER = 1000


def learn(world: World, out: Path, group: int, say: Callable[[str], None]) -> Path:
    """Run what is left; returns the folder of the masks.

    Args:
        world: The model and the concepts.
        out: Folder of the runs.
        group: Concepts that learn together.
        say: Called with a line for each step.
    """
    names = world.names
    groups = {f"{k // group}": names[k : k + group] for k in range(0, len(names), group)}
    made: dict[str, Path] = {}
    for k, some in groups.items():
        made |= _stage(configured(world, some, GROUP, PAIRS["group"]), out / f"group-{k}", say)
    together = configured(world, names, TOGETHER, PAIRS["together"], list(made.values()))
    made |= _stage(together, out / "together", say)
    for k, some in groups.items():
        own, others = ([path for name, path in made.items() if (name in some) is is_own] for is_own in (True, False))
        made |= _stage(configured(world, some, BESIDE, PAIRS["group"], own, others), out / f"beside-{k}", say)
    store = out / "masks"
    store.mkdir(exist_ok=True)
    for path in made.values():
        write_atomically(store / path.name, path.read_bytes())
    return store


def configured(
    world: World,
    names: Sequence[str],
    settings: dict[str, Any],
    pairs: tuple[int, int],
    initial: Sequence[Path] = (),
    beside: Sequence[Path] = (),
) -> TrainConfig:
    """The run that learns the masks of some concepts; the others are preserved, where their masks are off.

    Args:
        world: The model and the concepts.
        names: Those that learn.
        settings: Of the run.
        pairs: Erase prompts a concept, and prompts to preserve.
        initial: Masks to start from.
        beside: Masks of others, which stay as they are and may be on.
    """
    options = options_of(world.profile, world.packs)
    every, prompts = options["categories"], options["prompts"]
    others = {name: category for name, category in every.items() if name not in names}
    counts = {"erase_pairs": pairs[0], "preserve_pairs": pairs[1], "category_share": 0.5}
    chosen = {
        "categories": {name: every[name].model_copy(update={"erase_pairs": pairs[0]}) for name in names},
        "prompts": prompts.model_copy(update={"others": others, **counts}),
        "initial": tuple(initial),
        "together_with": tuple(beside),
        "minimise": False,
        "validate_every": _NEVER,
    }
    return make_config({**options, **chosen, **settings}, "benchmark")


def _stage(config: TrainConfig, folder: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """One run; its seconds add up over interruptions. Returns concept -> its mask file."""
    record, made = folder / "seconds.json", {name: folder / f"{name}.safetensors" for name in config.categories}
    if all(path.exists() for path in made.values()):
        say(f"{folder.name}: done before")
        return made
    taken = json.loads(record.read_text()) if record.exists() else {"seconds": 0.0, "cpu_seconds": 0.0}
    clock, cpu = time.perf_counter(), time.process_time()

    def note(line: str = "") -> None:
        spent = {
            "seconds": taken["seconds"] + time.perf_counter() - clock,
            "cpu_seconds": taken["cpu_seconds"] + time.process_time() - cpu,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "concepts": len(config.categories),
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(record, (json.dumps(spent) + "\n").encode())
        say(f"{folder.name}: {line}")

    run(config, folder, lambda report, most: note(f"round {report.round} of {most}: {report}"))
    note("done")
    return made
