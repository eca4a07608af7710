"""`safeflux mask`: show, compare, combine, convert, publish, sign and verify mask files. Only import needs torch."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from safeflux.cli._completion import MASK
from safeflux.cli._lazy import Group
from safeflux.cli._shared import as_json
from safeflux.cli.mask.files import card, compose, diff, export, import_scores
from safeflux.cli.mask.publish import publish
from safeflux.cli.mask.sign import sign, verify
from safeflux.cli.mask.view import as_dict, print_counts
from safeflux.masks.encoding import digest
from safeflux.masks.file import load_masks


@click.group(cls=Group)
def mask() -> None:
    """Show, compare, combine, export, import, publish, sign and verify mask files."""


_EXAMPLES = """\b
Examples:
  safeflux mask show weapons.safetensors
  safeflux mask show weapons.safetensors --json
"""


@mask.command(epilog=_EXAMPLES)
@click.argument("file", metavar="FILE", type=MASK)
@as_json
def show(file: Path, as_json: bool) -> None:
    """Show the metadata of the mask FILE, and the number of bits that are off at each site."""
    masks, meta = load_masks(file)
    if as_json:
        click.echo(json.dumps(as_dict(masks, meta)))
        return
    facts = asdict(meta) | {"concepts": ", ".join(meta.concepts), "evaluation": json.dumps(meta.evaluation)}
    width = max(map(len, facts)) + 2
    for key, value in facts.items():
        click.echo(f"{key:{width}}{value}")
    click.echo(f"{'bits sha256':{width}}{digest(masks)}\n")
    print_counts("site", {**masks.counts, "all": masks.count})
    click.echo()
    print_counts("kind", masks.counts_by_kind)


for command in (card, diff, compose, export, import_scores, publish, sign, verify):
    mask.add_command(command)
