"""`safeflux demo`: the embedded model before and after a policy. Imports the model's libraries only when it runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safeflux.cli._shared import Bar, as_json, examples, masks, out_folder, policy, print_rows

if TYPE_CHECKING:
    from safeflux.demo.report import DemoReport
    from safeflux.demo.result import DemoResult
    from safeflux.masks.store import Store


@click.command(epilog=examples("safeflux demo", "safeflux demo --policy family --images 10 --json"))
@policy
@masks
@out_folder("Folder for the report; created if it does not exist.", Path("safeflux-demo"))
@click.option(
    "--images",
    type=click.IntRange(1, 1000),
    default=40,
    show_default=True,
    help="Number of prompts of each kind.",
)
@click.option(
    "--seed", type=click.IntRange(0, 1_000_000), default=0, show_default=True, help="Seed of prompts and noises."
)
@as_json
def demo(policy: str, store: "Store", out: Path, images: int, seed: int, as_json: bool) -> None:
    """Draw the same prompts before and after guarding the embedded model, and measure both.

    Prints the rates and writes OUT/report.html and OUT/grid.png.
    """
    with Bar() as bar:
        bar("importing torch and diffusers", 0, 1)
        from safeflux.demo.report import write_report
        from safeflux.demo.run import run_demo

        result = run_demo(policy, images=images, seed=seed, store=store, progress=bar)
        report = write_report(result, out)
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        print_summary(result, report)


def print_summary(result: "DemoResult", report: "DemoReport") -> None:
    """Print the rates, the cost of the guard, and the paths of the report."""
    rates = [(section.title, str(section.base), str(section.guarded)) for section in result.sections]
    print_rows(("share of pictures, 95 % interval", "before", "after"), rates)
    timing, weights, neurons = result.timing, result.weights, result.neurons
    contrast = result.fidelity and result.fidelity.contrast
    lines = {
        **({"contrast left": f"{contrast}, in kept things"} if contrast else {}),
        "weights off": f"{weights.masked:,} of {weights.total:,} ({100 * weights.share:.2f} %)",
        "neurons off": f"{neurons.masked:,} of {neurons.total:,} ({100 * neurons.share:.2f} %)",
        "guard()": f"{timing.guard:.1f} ms",
        "one step": f"{timing.plain:.2f} ms before, {timing.guarded:.2f} ms after",
        "report": str(report.page),
        "picture": str(report.grid),
    }
    click.echo()
    for name, text in lines.items():
        click.echo(f"{name:15}{text}")
