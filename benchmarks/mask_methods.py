"""Which way of choosing bits serves best: one category, learned by each method from the same seed, measured alike.

    python -m benchmarks.mask_methods --category weapons --report benchmarks/reports/mask_methods.json

Each method is a full `safeflux train` run; an interrupted run resumes. The figures are those of `safeflux eval`:
held-out words, concepts and noises, without and with the mask; the curves in the picture are of validation. `published
recipe` has the settings of arXiv 2507.13386 and its code: gates on neurons under Adam with a large step, batches of 4,
a fixed beta, the null prompt as the anchor, plain distances, prompts drawn all alike, no price on masked neurons.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from safeflux.trainer.run.curves import read_rounds
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.session import run

import safeflux
from safeflux.disk.atomic import write_atomically
from safeflux.evaluation.bench import Bench
from safeflux.evaluation.plots import plot_growth
from safeflux.evaluation.questions import Sizes
from safeflux.masks.file import load_masks
from safeflux.reference.judge import Judge
from safeflux.reference.model import load_pipeline

NEURONS = "kinds=[ff, mlp, norm]"
GATES = ("method=gates", "validate_every=4")
"""A round of gates takes five times as long as one of saliency."""
METHODS: dict[str, Sequence[str]] = {
    "saliency, weights": (),
    "published recipe": (
        NEURONS,
        *GATES,
        "gates.rounds=40",
        "gates.lr=0.5",
        "gates.beta=0.1",
        "gates.lambda=0",
        "batch=4",
        "minimise=false",
        "confirm=false",
        "erase_loss=absolute",
        "hard_share=0",
        "spoilt_share=0",
        "categories.{category}.anchor='null'",
    ),
    "gates, weights": (*GATES, "gates.rounds=16", "gates.lambda=auto"),
    "saliency, neurons": (NEURONS, "saliency.bits_off=40", "saliency.bits_on=10", "saliency.preserve_budget=0.03"),
    "saliency, weights, all prompts alike": ("hard_share=0", "spoilt_share=0", "erase_loss=absolute"),
    "gates, neurons": (NEURONS, *GATES, "gates.rounds=16", "gates.lambda=auto", "gates.target_share=0.05"),
    "saliency, then gates, weights": (*GATES, "gates.lr=0.05", "gates.rounds=8", "gates.lambda=auto"),
}
"""The options of each method that are not defaults."""
FIRST = "saliency, weights"
"""The method whose mask a sequence starts from."""


def seconds_of(folder: Path) -> float:
    """Time of all rounds of a run."""
    return sum(json.loads(line)["seconds"] for line in (folder / "log.jsonl").read_text().splitlines())


@click.command(help=__doc__)
@click.option("--category", default="weapons", show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(METHODS)), help="A method. Repeatable; without, all.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/mask_methods"), show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=None)
@click.option("--seed", default=0, show_default=True)
def main(category: str, only: tuple[str, ...], out: Path, report: Path | None, seed: int) -> None:
    """Train, measure, print, write."""
    bench = Bench(load_pipeline(), Judge(), sizes=Sizes(kept=500, neighbours=50, others=24))
    versions = {"safeflux": safeflux.__version__, "torch": torch.__version__}
    head = {"category": category, "seed": seed, "versions": versions, "machine": platform.machine()}
    rows = _measured_before(report, head)
    for name in only or METHODS:
        click.echo(name)
        rows[name] = _measured(bench, category, name, out, seed)
        rows = {method: rows[method] for method in METHODS if method in rows}
        if report:
            report.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(report, (json.dumps({**head, "methods": rows}, indent=1) + "\n").encode())
            lines = {method: row["curve"] for method, row in rows.items()}
            plot_growth(lines, report.with_suffix(".png"), title=f"{category}: what validation saw as the masks grew")


def _measured_before(report: Path | None, head: dict[str, Any]) -> dict[str, Any]:
    """The methods that a report of the same category, seed, versions and machine has already."""
    found = json.loads(report.read_text()) if report and report.exists() else {}
    return dict(found["methods"]) if found and all(found[key] == value for key, value in head.items()) else {}


def _measured(bench: Bench, category: str, name: str, out: Path, seed: int) -> dict[str, Any]:
    folder = out / name.replace(", ", "-").replace(" ", "-")
    settings = [setting.format(category=category) for setting in METHODS[name]]
    given: dict[str, Any] = {"seed": seed}
    if " then " in name:
        given["initial"] = (out / FIRST.replace(", ", "-") / f"{category}.safetensors",)
    result = run(plan_run([category], None, settings, given), folder, lambda report, most: click.echo(f"  {report}"))
    assert result is not None
    figures = bench.measure(load_masks(result.paths[category])[0], [category])
    seconds = round(seconds_of(folder))
    click.echo(
        f"  {result.masked[category]} bits off ({100 * result.share_masked:.2f} %), found {figures.found.masked}, "
        f"kept {figures.kept_right.masked}, {seconds} s"
    )
    return {
        "settings": settings,
        "reaches_target": result.reaches_target,
        "masked": result.masked[category],
        "share_masked": result.share_masked,
        "seconds": seconds,
        "curve": [(point.masked / result.bits, point.found, point.right) for point in read_rounds(folder)[category]],
        **figures.to_json(),
    }


if __name__ == "__main__":
    main()
