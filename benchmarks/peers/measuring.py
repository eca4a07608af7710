"""Chooses a method's settings, measures it on subsets of the targets, and keeps all figures."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.attacking import Attacks, applies
from benchmarks.peers.material import Material
from benchmarks.peers.memory import memory_of
from benchmarks.peers.method import Made, Settings
from benchmarks.peers.methods import METHODS
from benchmarks.timing import ran_on
from safeflux.disk.atomic import write_atomically
from safeflux.evaluation.bench import Bench
from safeflux.evaluation.figures import Figures
from safeflux.reference.measure import draw
from safeflux.reference.vocabulary import vocabulary

PICTURES, TIMES = 16, 7
"""Pictures at a time and repetitions, for the time of a picture."""
KINDS = ("trials", "measured", "made", "times", "composed", "memory", "attacked", "pictures")
"""What a report has of each method."""
BASE = "base model"
"""Stands among the methods that are attacked."""


class Report:
    """All that is known, on disk as soon as it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Any] = {kind: {} for kind in KINDS} | (
            json.loads(path.read_text()) if path.exists() else {}
        )

    def add(self, kind: str, method: str, key: str, value: dict[str, Any]) -> None:
        """Keep a value."""
        self.found[kind].setdefault(method, {})[key] = value
        self.found |= ran_on()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, (json.dumps(self.found, indent=1) + "\n").encode())

    def get(self, kind: str, method: str, key: str) -> dict[str, Any] | None:
        """What is kept, if it is."""
        value: dict[str, Any] | None = self.found[kind].get(method, {}).get(key)
        return value


def subsets_of(names: Sequence[str], sizes: Sequence[int], each: int) -> list[tuple[str, ...]]:
    """All subsets of one, and up to `each` random ones of every other size."""
    rng, found = np.random.default_rng(0), []
    for size in sizes:
        every = list(combinations(names, size))
        most = len(every) if size == 1 else each
        found += [every[k] for k in sorted(rng.permutation(len(every))[:most])]
    return found


class Peers:
    """The methods on one model.

    Args:
        pipe: The embedded model.
        validation: Measures trials.
        bench: Measures what is reported.
        report: Keeps it.
        say: Called with a line for each step.
    """

    def __init__(self, pipe: Any, validation: Bench, bench: Bench, report: Report, say: Callable[[str], None]) -> None:
        self.pipe, self.report = pipe, report
        self._validation, self._bench, self._say = validation, bench, say
        self._made: dict[str, Made] = {}

    def choose(self, method: str, names: Sequence[str]) -> Settings:
        """The settings with the best harmonic mean over all targets on validation."""
        grid, scores = METHODS[method].grid, []
        for settings in grid:
            key = json.dumps(settings)
            if (row := self.report.get("trials", method, key)) is None:
                figures = self._validation.compare(self.of(method, names, settings).drawing(self.pipe), names)
                row = _brief(figures)
                self.report.add("trials", method, key, row)
            self._say(f"{method} {key}: H {row['harmonic']['value']:.3f}")
            scores.append(row["harmonic"]["value"])
        return grid[int(np.argmax(scores))]

    def measure(self, method: str, names: Sequence[str], settings: Settings) -> None:
        """Measure a subset, unless the report has it with these settings."""
        key, before = " + ".join(names), self.report.get("measured", method, " + ".join(names))
        if before and before["settings"] == settings:
            return
        made = self.of(method, names, settings)
        figures = self._bench.compare(made.drawing(self.pipe), names)
        row = {"settings": settings, "targets": list(names), "bytes": made.num_bytes, **_brief(figures)}
        self.report.add("measured", method, key, row)
        self._say(f"{method}, {key}: H {row['harmonic']['value']:.3f}")

    def time(self, method: str, names: Sequence[str], settings: Settings) -> None:
        """The time of a picture under all targets, in units of the base model's; in turn."""
        prompts = ["a cat, noto style, blue background"] * PICTURES
        made, ratios = self.of(method, names, settings), []
        for _ in range(TIMES):
            began = time.perf_counter()
            draw(self.pipe, prompts, 0)
            between = time.perf_counter()
            with made.drawing(self.pipe) as pipe:
                entered = time.perf_counter()
                draw(pipe, prompts, 0)
                ratios.append((time.perf_counter() - entered) / (between - began))
        self.report.add("times", method, "picture", {"ratio": statistics.median(ratios), "all": ratios})

    def remember(self, method: str, names: Sequence[str], settings: Settings) -> None:
        """The memory that it takes to make the method, unless the report has it with these settings."""
        before = self.report.get("memory", method, "making")
        if not before or before["settings"] != settings:
            self._say(f"{method}: memory")
            found = {"settings": settings, **memory_of(method, settings, names)}
            self.report.add("memory", method, "making", found)

    def attack(self, method: str, names: Sequence[str], settings: Settings, attacks: Attacks) -> None:
        """Every attack on every thing, but for those that the report has."""
        made = self.of(method, names, settings)
        is_outside = method != BASE and METHODS[method].is_outside
        for row, of_row in attacks.rows.items():
            for attack, thing in product(of_row, attacks.things):
                key = f"{attack.name}/{thing.name}"
                before = self.report.get("attacked", method, key)
                is_done = before and before["settings"] == settings and before["targets"] == list(names)
                if is_done or not applies(attack, made, is_outside):
                    continue
                began = time.perf_counter()
                points = attacks.run(attack, thing, made)
                facts = {"row": row, "attack": attack.name, "thing": thing.name, "unit": attack.unit}
                facts |= {"settings": settings, "targets": list(names), "seconds": time.perf_counter() - began}
                self.report.add("attacked", method, key, {**facts, "points": points})
                self._say(f"{method}, {key}: {max(point['hits'] / point['n'] for point in points):.2f}")

    def of(self, method: str, names: Sequence[str], settings: Settings) -> Made:
        """The method for these targets: combined from single ones where it can be, else made together."""
        if method == BASE:
            return Made(nullcontext, 0)
        chosen = METHODS[method]
        if chosen.combine is None or len(names) == 1:
            return self._make(method, names, settings)
        parts = [self._make(method, [name], settings) for name in names]
        began = time.perf_counter()
        made = chosen.combine(Material(self.pipe), parts, settings)
        self.report.add("composed", method, str(len(names)), {"seconds": time.perf_counter() - began})
        return made

    def forget(self) -> None:
        """Let go of what was made."""
        self._made.clear()

    def _make(self, method: str, names: Sequence[str], settings: Settings) -> Made:
        key = json.dumps([method, list(names), dict(settings)])
        if key not in self._made:
            self._say(f"{method}: making {' + '.join(names)}")
            torch.manual_seed(0)
            targets = [vocabulary().targets[name] for name in names]
            clock, cpu = time.perf_counter(), time.process_time()
            self._made[key] = METHODS[method].make(Material(self.pipe), targets, settings)
            taken = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}
            found = {"targets": list(names), "settings": dict(settings), **taken, **self._made[key].facts}
            self.report.add("made", method, key, found)
        return self._made[key]


def _brief(figures: Figures) -> dict[str, Any]:
    """The figures of a table."""
    held_out, harmonic = figures.found_held_out, figures.harmonic
    assert harmonic is not None
    return {
        "found": figures.found.masked.to_json(),
        "found_held_out": held_out.masked.to_json() if held_out else None,
        "kept_right": figures.kept_right.masked.to_json(),
        "kept_right_base": figures.kept_right.base.to_json(),
        "harmonic": harmonic.to_json(),
        "style_right": figures.looks_right["style"].masked.to_json(),
        "fidelity": figures.fidelity.to_json(),
    }
