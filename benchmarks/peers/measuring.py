"""Chooses a method's settings, measures it on subsets of the targets, and keeps all figures."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.material import Material
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


class Report:
    """All that is known, on disk as soon as it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        empty: dict[str, Any] = {"trials": {}, "measured": {}, "made": {}, "times": {}}
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else empty

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
                figures = self._validation.compare(self._of(method, names, settings).drawing(self.pipe), names)
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
        made = self._of(method, names, settings)
        figures = self._bench.compare(made.drawing(self.pipe), names)
        row = {"settings": settings, "targets": list(names), "bytes": made.num_bytes, **_brief(figures)}
        self.report.add("measured", method, key, row)
        self._say(f"{method}, {key}: H {row['harmonic']['value']:.3f}")

    def time(self, method: str, names: Sequence[str], settings: Settings) -> None:
        """The time of a picture under all targets, in units of the base model's; in turn."""
        prompts = ["a cat, noto style, blue background"] * PICTURES
        made, ratios = self._of(method, names, settings), []
        for _ in range(TIMES):
            began = time.perf_counter()
            draw(self.pipe, prompts, 0)
            between = time.perf_counter()
            with made.drawing(self.pipe) as pipe:
                entered = time.perf_counter()
                draw(pipe, prompts, 0)
                ratios.append((time.perf_counter() - entered) / (between - began))
        self.report.add("times", method, "picture", {"ratio": statistics.median(ratios), "all": ratios})

    def of_report(self, method: str, names: Sequence[str]) -> Made:
        """What was measured on these targets."""
        row = self.report.get("measured", method, " + ".join(names))
        assert row is not None
        return self._of(method, names, row["settings"])

    def _of(self, method: str, names: Sequence[str], settings: Settings) -> Made:
        """Combined from single targets where the method can be, else made together."""
        chosen = METHODS[method]
        if chosen.combine is None or len(names) == 1:
            return self._make(method, names, settings)
        parts = [self._make(method, [name], settings) for name in names]
        return chosen.combine(Material(self.pipe), parts, settings)

    def _make(self, method: str, names: Sequence[str], settings: Settings) -> Made:
        key = json.dumps([method, list(names), dict(settings)])
        if key not in self._made:
            self._say(f"{method}: making {' + '.join(names)}")
            torch.manual_seed(0)
            targets = [vocabulary().targets[name] for name in names]
            clock, cpu = time.perf_counter(), time.process_time()
            self._made[key] = METHODS[method].make(Material(self.pipe), targets, settings)
            taken = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}
            self.report.add("made", method, key, {"targets": list(names), "settings": dict(settings), **taken})
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
        "style_right": figures.style_right.masked.to_json() if figures.style_right else None,
        "fidelity": figures.fidelity.to_json(),
    }
