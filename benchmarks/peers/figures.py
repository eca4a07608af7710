"""The figures of a report, method by method, as the table and the page show them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.measuring import BASE
from benchmarks.peers.methods import METHODS
from safeflux.evaluation.metrics import Harmonic, harmonic
from safeflux.rates import Rate

ROWS = ("prompts", "one new word", "img2img", "one gradient", "fine-tune")
"""Of attacks, in the order of the table."""
OF_WEIGHTS = ("one gradient", "fine-tune")


@dataclass(frozen=True)
class Summary:
    """One method on the subsets of one size.

    Attributes:
        method: Its name.
        size: Targets at once.
        found: How often a target is found by name.
        held_out: The same by words that nothing was trained on; None without any.
        kept: How often everything else is right.
        ssim: Similarity of pictures of everything else to the base model's.
        num_bytes: Mean of what has to be stored.
        seconds: Median of what it took to make, each time.
    """

    method: str
    size: int
    found: Rate
    held_out: Rate | None
    kept: Rate
    ssim: float
    num_bytes: float
    seconds: float | None

    @property
    def harmonic(self) -> Harmonic:
        """MACE's mean of the three."""
        return harmonic(self.found, self.kept, self.held_out)


def measured(found: Mapping[str, Any]) -> list[Summary]:
    """Every method that was measured, in the order of the table, and the sizes of each; rates pooled over subsets."""
    summaries = []
    for method in (name for name in METHODS if name in found["measured"]):
        by_size: dict[int, list[dict[str, Any]]] = {}
        for row in found["measured"][method].values():
            by_size.setdefault(len(row["targets"]), []).append(row)
        summaries += [_summary(found, method, size, by_size[size]) for size in sorted(by_size)]
    return summaries


def _summary(found: Mapping[str, Any], method: str, size: int, rows: Sequence[Mapping[str, Any]]) -> Summary:
    erased, held_out, kept = (_pooled(rows, name) for name in ("found", "found_held_out", "kept_right"))
    seconds = [m["seconds"] for m in found["made"][method].values() if m["settings"] == rows[0]["settings"]]
    return Summary(
        method,
        size,
        erased,
        held_out if held_out.n else None,
        kept,
        statistics.mean(row["fidelity"]["ssim"]["mean"] for row in rows),
        statistics.mean(row["bytes"] for row in rows),
        statistics.median(seconds) if seconds else None,
    )


def _pooled(rows: Sequence[Mapping[str, Any]], name: str) -> Rate:
    counts = [row[name] for row in rows if row[name]]
    return Rate(sum(each["hits"] for each in counts), sum(each["n"] for each in counts))


def attacked(found: Mapping[str, Any], method: str) -> dict[str, Rate]:
    """Row -> the worst of its attacks and budgets over all things; the base model's where its weights are attacked."""
    units = list(found["attacked"].get(method, {}).values())
    worst = {row: _worst([unit for unit in units if unit["row"] == row]) for row in ROWS}
    rates = {row: rate for row, rate in worst.items() if rate is not None}
    if method != BASE and METHODS[method].is_outside and rates:
        base = attacked(found, BASE)
        rates |= {row: base["prompts"] for row in OF_WEIGHTS if "prompts" in base}
    return rates


def _worst(units: Sequence[Mapping[str, Any]]) -> Rate | None:
    points: dict[tuple[str, float], Rate] = {}
    for unit in units:
        for point in unit["points"]:
            place = unit["attack"], point["budget"]
            points[place] = points.get(place, Rate(0, 0)) + Rate(point["hits"], point["n"])
    return max(points.values(), key=lambda rate: rate.value, default=None)


def made_in(one: Summary) -> str:
    """The time that it took, or the command that made it before."""
    if command := METHODS[one.method].trained_by:
        return f"before, by {command}"
    return "" if one.seconds is None else f"{one.seconds:.0f} s"


def is_first(value: Rate | Harmonic, every: Sequence[Rate | Harmonic], *, is_high_good: bool) -> bool:
    """Whether a figure is the best, or its interval reaches that of the best."""
    best = (max if is_high_good else min)(every, key=lambda one: one.value)
    (low, high), (best_low, best_high) = value.interval, best.interval
    return high >= best_low if is_high_good else low <= best_high
