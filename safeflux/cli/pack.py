"""`safeflux pack`: categories in words. Needs no torch."""

import json
from pathlib import Path
from typing import Any

import click

from safeflux.cli._lazy import Group, exit_code
from safeflux.cli._shared import as_json, examples
from safeflux.cli._starter import check_new, report_new, schema_text, write_new
from safeflux.errors import ConfigError
from safeflux.packs.load import known_packs, load_pack, pack_text
from safeflux.packs.schema import pack_schema

SCHEMA_FILE = "pack.schema.json"
"""The schema for editors, next to the pack."""


@click.group(cls=Group)
def pack() -> None:
    """List, check and write packs: the words from which `safeflux train` makes a mask for a category.

    A PACK is a bundled name (weapons, emoji:weapons) or the path of a YAML file.
    """


@pack.command("list", epilog=examples("safeflux pack list --json"))
@as_json
def list_(as_json: bool) -> None:
    """List the packs that come with safeflux."""
    packs = {name: load_pack(name) for name in known_packs()}
    if as_json:
        click.echo(json.dumps({name: one.model_dump(mode="json") for name, one in packs.items()}))
        return
    for name, one in packs.items():
        click.echo(f"{name:22}{one.target:10}{', '.join(one.concepts)}")


@pack.command(epilog=examples("safeflux pack check vehicles.yaml", "safeflux pack check *.yaml --json"))
@click.argument("packs", metavar="PACK...", nargs=-1, required=True)
@as_json
@click.pass_context
def check(ctx: click.Context, packs: tuple[str, ...], as_json: bool) -> None:
    """Check packs: every error with file, line, column and excerpt; exit 1 if there is one."""
    rows, codes = [], [0]
    for name in packs:
        try:
            row = _facts(name)
        except ConfigError as error:
            row = {"pack": name, "ok": False, "error": str(error)}
            codes.append(exit_code(error))
        rows.append(row)
        if not as_json:
            click.echo(_TEXT.format(**row) if row["ok"] else row["error"], err=not row["ok"])
    if as_json:
        click.echo(json.dumps({"ok": max(codes) == 0, "packs": rows}))
    ctx.exit(max(codes))


_TEXT = "{pack}: {name}, {concepts} concepts, {words} words, {held_out} held out"


def _facts(name: str) -> dict[str, Any]:
    one = load_pack(name)
    words, held_out = (sum(map(len, each.values())) for each in (one.words, one.held_out))
    counts = {"concepts": len(one.concepts), "words": words, "held_out": held_out}
    return {"pack": name, "ok": True, "name": one.name, **counts}


@pack.command(epilog=examples("safeflux pack new vehicles.yaml", "safeflux pack new cartoon.yaml --from art-style"))
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--from", "source", default="character", show_default=True, help="The bundled pack to start from.")
@as_json
def new(file: Path, source: str, as_json: bool) -> None:
    """Write a new pack to FILE (NAME.yaml), and its schema for editors; existing files are not overwritten."""
    check_new(file)
    text = f"# yaml-language-server: $schema={SCHEMA_FILE}\n{pack_text(source)}"
    text = text.replace(f"\nname: {source}\n", f"\nname: {file.stem}\n")
    write_new(file, text, SCHEMA_FILE, pack_schema())
    report_new(file, SCHEMA_FILE, f"pack check {file}", as_json=as_json, source=source)


@pack.command("schema", epilog=examples("safeflux pack schema > safeflux-pack.schema.json"))
def schema_() -> None:
    """Print the JSON Schema (draft-07) of a pack, for editors."""
    click.echo(schema_text(pack_schema()), nl=False)
