"""`safeflux audit`: look through the log of what was done to models. Needs no torch."""

import json
from pathlib import Path

import click

from safeflux.audit import verify_log
from safeflux.cli._options import as_json


@click.group()
def audit() -> None:
    """Look through audit logs."""


@audit.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--head", metavar="SHA256", help="A hash that the log must hold: one that was kept when it was appended.")
@as_json
@click.pass_context
def verify(ctx: click.Context, file: Path, head: str | None, as_json: bool) -> None:
    """Tell each place where the chain of hashes in FILE is broken; exit 1 if there is one.

    Lines that were cut off at the end are found only with --head.
    """
    found = verify_log(file, head=head)
    if as_json:
        click.echo(json.dumps({"ok": not found.faults, **vars(found)}))
    elif found.faults:
        click.echo("\n".join(f"{file}: {fault}" for fault in found.faults), err=True)
    else:
        click.echo(f"{file}: {found.lines} lines, unbroken; head {found.head}")
    if found.faults:
        ctx.exit(1)
