"""Which way of choosing bits serves best: one category, learned by each method from the same seed, measured alike.

    python -m benchmarks.mask_methods --category weapons --report benchmarks/reports/mask_methods.json

Each method is a full `safeflux train` run; a run that was cut off goes on. The figures are those of the run's own
evaluation: held-out words, concepts and noises, without and with the mask.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import click
import torch
from safeflux.trainer.session import plan_run, run

import safeflux

NEURONS = "kinds=[ff, mlp, norm]"
METHODS = {
    "saliency, weights, nothing on again": ("saliency.bits_on=0", "saliency.exchange_rounds=0"),
    "saliency, weights, exchange": (),
    "saliency, neurons": (NEURONS, "saliency.bits_off=40", "saliency.bits_on=10"),
    "gates, weights": ("method=gates",),
    "gates, neurons": (NEURONS, "method=gates"),
}
"""What each method sets beside the defaults."""


def seconds_of(folder: Path) -> float:
    """Time of all rounds of a run."""
    return sum(json.loads(line)["seconds"] for line in (folder / "log.jsonl").read_text().splitlines())


@click.command(help=__doc__)
@click.option("--category", default="weapons", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/mask_methods"), show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=None)
@click.option("--seed", default=0, show_default=True)
def main(category: str, out: Path, report: Path | None, seed: int) -> None:
    """Train, measure, print, write."""
    rows = {}
    for name, settings in METHODS.items():
        click.echo(name)
        folder = out / name.replace(", ", "-").replace(" ", "-")
        planned = plan_run(category, None, settings, {"seed": seed})
        result = run(planned, folder, lambda report, most: click.echo(f"  {report}"))
        rows[name] = {
            "settings": settings,
            "reaches_target": result.reaches_target,
            "masked": result.masked,
            "share_masked": result.share_masked,
            "seconds": round(seconds_of(folder)),
            **result.evaluation,
        }
        found, kept = ([result.evaluation[s][key]["rate"] for s in ("base", "masked")] for key in ("found", "kept"))
        click.echo(
            f"  {100 * result.share_masked:.2f} % off, found {100 * found[0]:.1f} -> {100 * found[1]:.1f} %, "
            f"kept {100 * kept[0]:.1f} -> {100 * kept[1]:.1f} %, {rows[name]['seconds']} s"
        )
    if report:
        versions = {"safeflux": safeflux.__version__, "torch": torch.__version__}
        head = {"category": category, "seed": seed, "versions": versions, "machine": platform.machine()}
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps({**head, "methods": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
