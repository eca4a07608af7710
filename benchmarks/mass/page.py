"""The chart and the page of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.mass.measuring import by_size, pooled, pooled_harmonic
from safeflux.disk.atomic import write_atomically
from safeflux.evaluation.plots import Point, plot_tradeoff
from safeflux.rates import Rate

_HEAD = [
    "masks on",
    "subsets",
    "found by name (Acc_e)",
    "by held-out words (Acc_g)",
    "other things right (Acc_s)",
    "H",
    "H of the worst subset",
    "SSIM",
    "bits off",
]
_ARMS = {"measured": "masks", "random": "random masks of as many bits"}
"""Parts of a report, by what they are of."""


def write_page(found: Mapping[str, Any], folder: Path) -> None:
    """Write `mass.md`, and `curve.png` beside it."""
    write_chart(found, folder / "curve.png")
    concepts = len({name for row in found["measured"].values() for name in row["concepts"]})
    parts = [
        f"# {concepts} concepts, a mask each\n",
        "Rates are pooled over the subsets of a size, with 95 % intervals. Subsets of one size share questions, so "
        "that the intervals of pooled rates are narrower than they should be.\n",
    ]
    for part, name in _ARMS.items():
        if found[part]:
            parts += [f"## Under {name}\n", _table(by_size(found[part]))]
    parts += [
        "## Without masks, on the same questions\n",
        _table(by_size(found["measured"]), "base"),
        "![erased against kept](curve.png)\n",
        "## Costs\n",
        _costs(found["costs"]),
        f"By the judge; safeflux {found['safeflux']}, torch {found['torch']}, {found['machine']}.\n",
    ]
    write_atomically(folder / "mass.md", "\n".join(parts).encode())


def write_chart(found: Mapping[str, Any], path: Path) -> None:
    """Erased against kept, a point for each number of masks on."""
    curves = {name: _points(by_size(found[part])) for part, name in _ARMS.items() if found[part]}
    plot_tradeoff(curves, path, title="masks on; all subsets of that size pooled")


def _points(sizes: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[Point]:
    return [Point(str(size), pooled(rows, "found"), pooled(rows, "kept_right")) for size, rows in sizes.items()]


def _table(sizes: Mapping[int, Sequence[Mapping[str, Any]]], model: str = "masked") -> str:
    rows = [_HEAD, ["---"] * len(_HEAD), *(_row(size, some, model) for size, some in sizes.items())]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(size: int, rows: Sequence[Mapping[str, Any]], model: str) -> list[str]:
    held_out: Rate = pooled(rows, "found_held_out", model)
    worst = min(row["harmonic" if model == "masked" else "harmonic_base"]["value"] for row in rows)
    ssim = [row["fidelity"]["ssim"]["mean"] for row in rows if row["fidelity"]["ssim"]]
    kinds = [count for row in rows for count in row["share_masked"].values()]
    off, total = sum(count["masked"] for count in kinds), sum(count["total"] for count in kinds)
    is_masked = model == "masked"
    return [
        str(size),
        str(len(rows)),
        str(pooled(rows, "found", model)),
        str(held_out) if held_out.n else "",
        str(pooled(rows, "kept_right", model)),
        str(pooled_harmonic(rows, model)),
        f"{100 * worst:.1f} %",
        f"{sum(ssim) / len(ssim):.3f}" if ssim and is_masked else "",
        f"{100 * off / total:.2f} %" if is_masked else "",
    ]


def _costs(costs: Mapping[str, Any]) -> str:
    learning, times = costs["learning"], costs["milliseconds"]
    each = learning["a_concept"]
    lines = {
        "learning a concept": f"{each['seconds']:.0f} s, {each['cpu_seconds']:.0f} s of processor time; at most "
        f"{learning['peak_mib']:,} MiB",
        "storing a concept": f"{costs['bytes']['mean'] / 1000:.1f} kB, at most {costs['bytes']['most'] / 1000:.1f} kB",
        "bits off": f"{costs['bits_off']['mean']:.0f} a mask, {costs['bits_off']['together']:,} under all",
        **{f"{name}, all masks": f"{value:.1f} ms" for name, value in times.items()},
    }
    return "".join(f"- {name}: {text}\n" for name, text in lines.items())
