"""The page of a report: one table of all methods, what each is, and where masks are not first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.figures import OF_WEIGHTS, ROWS, Summary, attacked, is_first, made_in, measured
from benchmarks.peers.measuring import BASE
from benchmarks.peers.methods import METHODS
from safeflux.disk.atomic import write_atomically
from safeflux.evaluation.metrics import Harmonic
from safeflux.evaluation.plots import Point, plot_tradeoff
from safeflux.pages.page import render
from safeflux.pages.pictures import png_uri
from safeflux.rates import Rate

OURS = "masks"
_RATES = ("found by name", "by held-out words", "everything else right", "H")
_HIGH_IS_GOOD = ("everything else right", "H")
Figure = Rate | Harmonic | None


def write_page(found: Mapping[str, Any], folder: Path) -> None:
    """Write `peers.html`, and `tradeoff.png` which it shows beside `peers.png`, from what is measured so far."""
    every = measured(found)
    if not every:
        return
    plot = folder / "tradeoff.png"
    plot_tradeoff({name: _points(every, name) for name in _names(every)}, plot, title="label: targets at once")
    pictures = [path for path in (plot, folder / "peers.png") if path.exists()]
    most = max(one.size for one in every)
    largest = [one for one in every if one.size == most]
    figures = {one.method: _figures(one, found) for one in largest}
    page = render(
        "benchmarks.peers",
        "peers.html",
        size=most,
        columns=[*_RATES, *ROWS],
        others=_OTHERS,
        rows=[_row(one, found, figures) for one in largest],
        base=[_text(attacked(found, BASE).get(row)) for row in ROWS],
        behind=[name for name in figures[OURS] if not _mark(OURS, name, figures)] if OURS in figures else [],
        methods={name: METHODS[name] for name in _names(every)},
        trials={name: len(found["trials"].get(name, {})) for name in _names(every)},
        outside=OF_WEIGHTS,
        pictures=[png_uri(path.read_bytes()) for path in pictures],
        machine=" ".join(f"{key} {found[key]}" for key in ("safeflux", "torch", "machine") if key in found),
        evidence=json.dumps(found, indent=1),
    )
    write_atomically(folder / "peers.html", page.encode())


def _names(every: Sequence[Summary]) -> list[str]:
    return list(dict.fromkeys(one.method for one in every))


def _points(every: Sequence[Summary], method: str) -> list[Point]:
    return [Point(str(one.size), one.found, one.kept) for one in every if one.method == method]


def _figures(one: Summary, found: Mapping[str, Any]) -> dict[str, Figure]:
    """Column -> figure."""
    rates: tuple[Figure, ...] = (one.found, one.held_out, one.kept, one.harmonic)
    return dict(zip(_RATES, rates, strict=True)) | {row: attacked(found, one.method).get(row) for row in ROWS}


def _mark(method: str, column: str, figures: Mapping[str, Mapping[str, Figure]]) -> bool:
    """Whether the figure is the first of its column, or within the interval of the first; of nothing, it is."""
    own = figures[method][column]
    every = [each[column] for each in figures.values()]
    known = [each for each in every if each is not None]
    return own is None or is_first(own, known, is_high_good=column in _HIGH_IS_GOOD)


_OTHERS = ("SSIM", "a picture", "made in", "memory to make", "stored", "undone", "composed at run time")


def _row(one: Summary, found: Mapping[str, Any], figures: Mapping[str, Mapping[str, Figure]]) -> dict[str, Any]:
    cells = [
        {"text": _text(value), "is_first": value is not None and _mark(one.method, name, figures)}
        for name, value in figures[one.method].items()
    ]
    return {"method": one.method, "cells": cells, "others": _others(one, found)}


def _others(one: Summary, found: Mapping[str, Any]) -> list[str]:
    """In the order of `_OTHERS`."""
    method, name = METHODS[one.method], one.method
    ratio = found["times"].get(name, {}).get("picture", {}).get("ratio")
    memory = found["memory"].get(name, {}).get("making")
    composed = found["composed"].get(name, {}).get(str(one.size))
    return [
        f"{one.ssim:.3f}",
        f"{ratio:.2f} times" if ratio else "",
        made_in(one),
        f"{memory['making'] - memory['model']:.0f} MB" if memory and not method.trained_by else "",
        f"{one.num_bytes / one.size / 1000:,.1f} kB a target",
        method.undo,
        "no: made anew" if method.combine is None else f"{1000 * composed['seconds']:.0f} ms" if composed else "yes",
    ]


def _text(value: Figure) -> str:
    """`7.5 % (2.6 to 19.9)`."""
    if value is None:
        return ""
    low, high = value.interval
    return f"{100 * value.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
