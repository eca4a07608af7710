"""Command-line options that several stages of the recipe share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def _folder(flag: str, default: str, what: str) -> Callable[[Any], Any]:
    return click.option(flag, type=click.Path(path_type=Path), default=Path(default), show_default=True, help=what)


out_option = _folder("--out", "runs/emoji_flux", "Folder of the run.")
to_option = _folder("--to", "safeflux/reference", "Folder of the model that is made, `emoji-flux`, and of its judge.")
report_option = _folder("--report", "benchmarks/emoji_flux/report", "Folder of the reports.")
vocabulary_option = click.option(
    "--vocabulary",
    "vocabulary_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="Concepts, styles and words, a YAML file; those of the embedded model without it.",
)
heads_option = click.option(
    "--heads", default=6, show_default=True, help="Attention heads of 32 channels: the transformer's width."
)
