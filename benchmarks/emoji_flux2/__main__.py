"""The whole recipe: art, latents, flow, export, evaluation, and three categories erased.

    python -m benchmarks.emoji_flux2 --out runs/emoji_flux2 --report benchmarks/reports/emoji_flux2.json

Some hours on a core, nearly all for the flow. Finished stages are skipped, cut-off ones go on.
"""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.emoji_flux.stages import run_left, run_stage

from .options import out_option

STAGES = (
    ("emoji_flux.art", "art.npz"),
    ("emoji_flux2.latents", "bank.pt"),
    ("emoji_flux2.flow", "flow.pt"),
    ("emoji_flux2.export", "emoji-flux-2.yaml"),
    ("emoji_flux2.evaluate", "report/figures.json"),
)
"""Each stage's module, and the file that it leaves when it is done."""


@click.command(help=__doc__)
@out_option
@click.option("--report", type=click.Path(path_type=Path), help="JSON file for what erasing gave.")
def main(out: Path, report: Path | None) -> None:
    """Run what is left."""
    run_left(out, STAGES, {"emoji_flux2.evaluate": ("--report", str(out / "report"))})
    run_stage("emoji_flux2.erase", "--out", str(out), *(("--report", str(report)) if report else ()))


if __name__ == "__main__":
    main()
