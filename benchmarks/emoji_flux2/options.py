"""Command-line options that several stages share."""

from pathlib import Path

import click

out_option = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/emoji_flux2"),
    show_default=True,
    help="Folder of the run.",
)
