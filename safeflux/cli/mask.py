"""`safeflux mask`: what a mask file holds, and who signed it. Needs no torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from safeflux.cli._options import as_json
from safeflux.cli.sign import sign, verify
from safeflux.maskfile import MaskMeta, digest, load_masks
from safeflux.masks import Count, MaskSet


@click.group()
def mask() -> None:
    """Look into mask files, sign them, and tell whether they are as they were signed."""


mask.add_command(sign)
mask.add_command(verify)


@mask.command()
@click.argument("file", metavar="FILE", type=click.Path())
@as_json
def show(file: str, as_json: bool) -> None:
    """Show the metadata of the mask FILE, and how many bits it switches off at each site."""
    masks, meta = load_masks(file)
    if as_json:
        click.echo(json.dumps(_as_dict(masks, meta)))
        return
    facts = asdict(meta) | {"concepts": ", ".join(meta.concepts), "evaluation": json.dumps(meta.evaluation)}
    width = max(map(len, facts)) + 2
    for key, value in facts.items():
        click.echo(f"{key:{width}}{value}")
    click.echo(f"{'bits sha256':{width}}{digest(masks)}\n")
    _print_counts("site", {**masks.counts, "all": masks.count})
    click.echo()
    _print_counts("kind", masks.counts_by_kind)


def _print_counts(what: str, counts: Mapping[str, Count]) -> None:
    # No box and no wrapping: one line a site, so that the output can be cut and compared.
    table = Table(box=None, pad_edge=False)
    table.add_column(what, no_wrap=True)
    for heading in ("off", "of", "share off"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, count in counts.items():
        table.add_row(name, f"{count.masked:,}", f"{count.total:,}", f"{count.share:.2%}")
    Console(width=120, highlight=False, markup=False).print(table)


def _as_dict(masks: MaskSet, meta: MaskMeta) -> dict[str, Any]:
    sites = {
        name: {"shape": list(masks.shapes[name]), "masked": count.masked, "total": count.total}
        for name, count in masks.counts.items()
    }
    return {"meta": asdict(meta), "digest": digest(masks), "share_masked": masks.share_masked, "sites": sites}
