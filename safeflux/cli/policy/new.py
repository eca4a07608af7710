"""`safeflux policy new` and `safeflux policy schema`."""

import logging
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from safeflux.cli._completion import CATEGORY
from safeflux.cli._shared import as_json, examples, stores
from safeflux.cli._starter import check_new, report_new, schema_text, write_new
from safeflux.policy.load import bundled_policies, load_policy_text, policy_schema
from safeflux.policy.schema import Category
from safeflux.policy.starter import SCHEMA_FILE, known_categories, starter
from safeflux.policy.validate import name_fault, nearest, suggest

_log = logging.getLogger(__name__)


def _names(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """The categories, each once; `all` stands for those with bundled masks."""
    names = dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip())
    if values and not names:
        raise click.BadParameter(f"expected names of categories, got {', '.join(map(repr, values))}", ctx, parameter)
    for name in names:
        if fault := name_fault(name):
            raise click.BadParameter(fault, ctx, parameter)
    return tuple(known_categories()) if "all" in names else tuple(names)


@click.command(epilog=examples("safeflux policy new shop.yaml --categories weapons,alcohol"))
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--categories",
    type=CATEGORY,
    multiple=True,
    callback=_names,
    metavar="A,B",
    help="Enforced, e.g. weapons,alcohol; all: those with bundled masks. Repeatable.",
)
@click.option(
    "--extends",
    type=click.Choice(bundled_policies()),
    help="Its parent.  [default: moderate, or none with --categories]",
)
@stores
@as_json
def new(file: Path, categories: tuple[str, ...], extends: str | None, stores: tuple[str, ...], as_json: bool) -> None:
    """Write a new policy to FILE (NAME.yaml), and its schema for editors; existing files are not overwritten.

    A category that is nearly the name of a bundled one is refused as a slip, unless a --store has a mask of its name.
    One of another name is a warning if no mask has it yet.
    """
    check_new(file)
    if fault := name_fault(file.stem):
        raise click.BadParameter(f"{file}: a policy has the name of its file, and {fault}", param_hint="FILE")
    extends = extends or (None if categories else "moderate")
    warnings = list(_unknown(categories, stores, known_categories()))
    text = starter(file.stem, extends, categories)
    load_policy_text(text.encode(), str(file))  # nothing is written that `policy check` refuses
    write_new(file, text, SCHEMA_FILE, policy_schema())
    for warning in warnings:
        _log.warning(warning)
    facts = {"extends": extends, "categories": list(categories), "warnings": warnings}
    check = ["policy", "check", str(file), *(word for store in stores for word in ("--store", store))]
    report_new(file, SCHEMA_FILE, shlex.join(check), as_json=as_json, **facts)


def _unknown(names: tuple[str, ...], stores: tuple[str, ...], known: Mapping[str, Category]) -> Iterator[str]:
    """A warning for each category without a mask."""
    unknown = [name for name in names if name not in known]
    if stores:
        from safeflux.masks.store import open_store

        opened = open_store(stores)
        unknown = [name for name in unknown if not opened.claims(name)]
    for name in unknown:
        if near := nearest(name, known):
            raise click.BadParameter(
                f"no bundled mask is named {name!r}; did you mean {near!r}? For a category of your own pass the "
                "--store that has its mask",
                param_hint="--categories",
            )
        yield f"{name} has no bundled mask{suggest(name, known)}"


@click.command(epilog=examples("safeflux policy schema > safeflux-policy.schema.json"))
def schema() -> None:
    """Print the JSON Schema (draft-07) of a policy file, for editors."""
    click.echo(schema_text(policy_schema()), nl=False)
