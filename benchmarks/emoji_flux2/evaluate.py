"""Measure emoji-flux-2 by the embedded model's judge, on seeds of its own, and draw the contact sheet.

    python -m benchmarks.emoji_flux2.evaluate --out runs/emoji_flux2 --report runs/emoji_flux2/report

Writes `figures.json` and `contact_sheet.webp`.
"""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.emoji_flux.evaluate import Measuring, sizes_options
from safeflux.reference.judge import Judge
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import vocabulary

from .export import CALL, NAME
from .options import out_option


@click.command(help=__doc__)
@out_option
@click.option("--report", type=click.Path(path_type=Path), default=Path("runs/emoji_flux2/report"), show_default=True)
@sizes_options
def main(out: Path, report: Path, each: int, pairs: int, seed: int, steps: int) -> None:
    """Measure and write."""
    settings = {**CALL, "num_inference_steps": steps}
    Measuring(Judge(), None, each, pairs, seed, settings).write(load_pipeline(out / NAME), vocabulary(), report)


if __name__ == "__main__":
    main()
