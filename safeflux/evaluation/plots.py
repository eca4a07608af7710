"""Pictures of figures, by matplotlib (`pip install 'safeflux[eval]'`). Every point stands with its 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safeflux.disk.atomic import write_atomically
from safeflux.errors import ConfigError
from safeflux.evaluation.metrics import Paired
from safeflux.rates import Rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE, MASKED = "#8a94a6", "#c2410c"
_FONT = 9
_BAR = 0.36  # height of one bar, in rows


@dataclass(frozen=True)
class Point:
    """One mask set in the plane of what is erased and what is kept."""

    label: str
    found: Rate
    """How often an erased concept is still found."""
    kept: Rate
    """Accuracy on everything else."""


def plot_rates(rates: Mapping[str, Paired], path: Path, *, title: str) -> None:
    """Draw one row for each rate: a bar for the base model, one for the masked one, each with its interval.

    Args:
        rates: Name -> rates of both.
        path: The PNG that is written, whole or not at all.
        title: What was measured.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = _figure(7, 1.1 + 0.34 * len(rates))
    axes = figure.subplots()
    for side, (name, colour) in enumerate((("base", BASE), ("masked", MASKED))):
        for row, pair in enumerate(rates.values()):
            rate: Rate = getattr(pair, name)
            place = row + (side - 0.5) * _BAR
            axes.barh(place, 100 * rate.value, _BAR, color=colour, label=name if row == 0 else None)
            axes.errorbar(100 * rate.value, place, xerr=_errors(rate), color="black", capsize=2, linewidth=0.8)
    axes.set_yticks(range(len(rates)), [f"{name} (n = {pair.base.n})" for name, pair in rates.items()], fontsize=_FONT)
    axes.set_ylim(len(rates) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of pictures, %, with 95 % intervals", fontsize=_FONT)
    axes.set_title(title, fontsize=_FONT + 1)
    figure.legend(fontsize=_FONT, loc="outside lower right", ncols=2)
    _save(figure, path)


def plot_tradeoff(series: Mapping[str, Sequence[Point]], path: Path, *, title: str) -> None:
    """Draw the curves of erasing against keeping; the upper right corner is where everything is wanted.

    Args:
        series: Name -> its points, joined in their order; each is labelled.
        path: The PNG that is written, whole or not at all.
        title: What the points differ in.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = _figure(6, 5)
    axes = figure.subplots()
    for name, points in series.items():
        x, y = [100 * (1 - point.found.value) for point in points], [100 * point.kept.value for point in points]
        across = [_errors(point.found)[::-1] for point in points]  # erased is 1 - found: the bounds change places
        up = [_errors(point.kept) for point in points]
        axes.errorbar(x, y, xerr=_columns(across), yerr=_columns(up), marker="o", capsize=2, linewidth=1, label=name)
        for point, left, top in zip(points, x, y, strict=True):
            axes.annotate(point.label, (left, top), (4, 4), textcoords="offset points", fontsize=_FONT - 1)
    axes.set_xlabel("erased: share of pictures without the concept, %", fontsize=_FONT)
    axes.set_ylabel("kept: share of other pictures that are right, %", fontsize=_FONT)
    axes.set_title(title, fontsize=_FONT + 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=_FONT, loc="lower left")
    _save(figure, path)


def plot_growth(lines: Mapping[str, Sequence[tuple[float, float, float]]], path: Path, *, title: str) -> None:
    """Draw what is found and what is kept over the share masked, one above the other.

    Args:
        lines: Name -> share masked (on a logarithmic axis; without bits off a mask has no place on it), share found,
            share kept, 0 to 1, for each mask in turn.
        path: The PNG that is written, whole or not at all.
        title: What the lines are.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = _figure(7, 6, layout=None)  # every text is known to fit: to look for room takes longer than to draw
    figure.subplots_adjust(left=0.11, right=0.98, bottom=0.08, top=0.95, hspace=0.06)
    found, kept = figure.subplots(2, sharex=True)
    for name, every in lines.items():
        points = [point for point in every if point[0] > 0]
        for axes, which in ((found, 1), (kept, 2)):
            x, y = [100 * point[0] for point in points], [100 * point[which] for point in points]
            axes.plot(x, y, marker="o", markersize=3, linewidth=1, label=name)
    for axes, text in ((found, "still found, %"), (kept, "everything else right, %")):
        axes.set_ylabel(text, fontsize=_FONT)
        axes.grid(alpha=0.3)
    kept.set_xlabel("share of the bits that are off, %", fontsize=_FONT)
    kept.set_xscale("log")
    found.set_title(title, fontsize=_FONT + 1)
    found.legend(fontsize=_FONT)
    _save(figure, path)


def _errors(rate: Rate) -> tuple[list[float], list[float]]:
    """How far the interval reaches below and above the rate, in percent, as matplotlib takes it."""
    low, high = rate.interval
    return [100 * max(0.0, rate.value - low)], [100 * max(0.0, high - rate.value)]


def _columns(errors: Sequence[tuple[list[float], list[float]]]) -> list[list[float]]:
    return [[low[0] for low, _ in errors], [high[0] for _, high in errors]]


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure of its own, in inches: pyplot's shared state and windows stay out of it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib; get it with: pip install 'safeflux[eval]'") from error
    return Figure(figsize=(width, height), layout=layout)


def _save(figure: Figure, path: Path) -> None:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})  # the same figures, the same bytes
    write_atomically(path, buffer.getvalue())
