"""`safeflux policy`: write, check, explain, compare, test, plan and lock policies. Needs no torch."""

import json
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeflux.cli._completion import CATEGORY, POLICY
from safeflux.cli._lazy import Group, exit_code
from safeflux.cli._shared import as_json, examples, masks, store, stores
from safeflux.cli._starter import check_new, report_new, schema_text, write_new
from safeflux.cli.policy.plan import changed_bits, lock, plan
from safeflux.errors import ConfigError
from safeflux.policy.check import STDIN, Checked, expand
from safeflux.policy.check import check as check_policy
from safeflux.policy.diff import Verdict, as_dict, compare, verdict
from safeflux.policy.expectations import EXAMPLE, run_policy_test
from safeflux.policy.load import Policy, PolicyFileError, bundled_policies, load_policy, policy_schema
from safeflux.policy.report import FORMS
from safeflux.policy.schema import PolicyFile
from safeflux.policy.starter import SCHEMA_FILE, known_categories, starter
from safeflux.policy.validate import suggest, validate
from safeflux.policy.yaml_reader import parse_document

if TYPE_CHECKING:
    from safeflux.masks.store import Store


@click.group(cls=Group)
def policy() -> None:
    """Write, check, explain, compare, test, plan and lock policies; print their JSON Schema.

    A POLICY is a bundled name (strict) or the path of a YAML file.
    """


policy.add_command(plan)
policy.add_command(lock)


_FORMATS = ("human", "json", *FORMS)
form = click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    default="human",
    show_default=True,
    help="github: annotations at the lines of a pull request. sarif: SARIF 2.1.0. junit: JUnit XML.",
)


@policy.command(
    epilog=examples("safeflux policy check strict shop.yaml", "safeflux policy check policies --format sarif")
)
@click.argument("policies", metavar="POLICY...", type=POLICY, nargs=-1, required=True)
@stores
@form
@as_json
@click.pass_context
def check(ctx: click.Context, policies: tuple[str, ...], stores: tuple[str, ...], form: str, as_json: bool) -> None:
    """Check each POLICY, and print every error with its place.

    A POLICY can also be a folder, whose YAML files are all checked, or - for standard input. A mask that does not erase
    what the policy says is an error; masks are looked up among the bundled ones, in each --store and in the `stores` of
    the policy. With either of these, an unknown mask is a warning.
    """

    @cache
    def masks() -> "Store":
        from safeflux.masks.store import open_store

        return open_store(stores or None)

    names = expand(policies)
    stdin = _standard_input() if STDIN in names else b""
    results = [check_policy(name, masks, has_own=bool(stores), stdin=stdin) for name in names]
    cases = [result.case for result in results]
    failed = [result for result in results if result.case.errors]
    if as_json or form == "json":
        rows = [result.as_dict() for result in results]
        click.echo(json.dumps({"ok": not failed, "policies": rows}))
    elif form in ("sarif", "junit"):
        click.echo(FORMS[form](cases))
    else:
        for result in results:
            _print_result(result, form)
        if len(results) > 1:
            warnings = sum(len(case.findings) - len(case.errors) for case in cases)
            click.echo(
                f"{len(results)} policies: {len(results) - len(failed)} ok, {len(failed)} not, {warnings} warnings"
            )
    if failed:
        ctx.exit(max(exit_code(result.error) for result in failed))


def _print_result(result: Checked, form: str) -> None:
    if not result.case.errors:
        click.echo(f"{result.name}: ok, sha256:{result.digest}")
    if form == "github":
        click.echo(FORMS[form]([result.case]), nl=bool(result.findings))
    elif result.error:
        click.echo(str(result.error), err=True)
    else:
        for finding in result.findings:
            click.echo(str(finding), err=True)


@policy.command(epilog=examples("safeflux policy explain strict"))
@click.argument("name", metavar="POLICY", type=POLICY)
@store
@as_json
def explain(name: str, store: "Store", as_json: bool) -> None:
    """Show what POLICY puts in force, the file and line of each value, and what its masks erase and cost.

    What a mask erases, and its figures, are read from its file, one for each base model.
    """
    from safeflux.masks.card import about, summary

    effective = load_policy(name)
    masks = dict.fromkeys(mask for category in effective.categories.values() for mask in category.masks)
    all_stores = store.including(effective.stores)
    metas = {mask: [meta for _, meta in all_stores.metas(mask)] for mask in masks}
    if as_json:
        rows = {mask: [about(meta) for meta in found] for mask, found in metas.items()}
        click.echo(json.dumps({**_as_dict(effective), "masks": rows}))
        return
    click.echo(f"{effective.name}: {effective.description}\nsha256:{effective.digest}\n")
    values = {key: _plain(value) for key, value in effective.values().items()}
    key_width, value_width = max(map(len, values)), max(map(len, values.values()))
    for key, value in values.items():
        origin = effective.origins.get(key, "default")
        click.echo(f"{key:{key_width}}  {value:{value_width}}  {origin}")
    click.echo("\nmasks")
    for mask, found in metas.items():
        for line in map(summary, found) if found else ("is in no store",):
            click.echo(f"  {mask}  {line}")


def _plain(value: Any) -> str:
    return ", ".join(value) or "none" if isinstance(value, list) else str(value)


def _as_dict(effective: Policy) -> dict[str, Any]:
    origins = effective.origins
    return {
        "name": effective.name,
        "description": effective.description,
        "digest": effective.digest,
        "values": {
            key: {"value": value, "file": origins[key].file, "line": origins[key].line}
            if key in origins
            else {"value": value, "file": None, "line": None}
            for key, value in effective.values().items()
        },
    }


@policy.command(
    epilog=examples("safeflux policy diff moderate strict", "safeflux policy diff live.yaml next.yaml --forbid-relaxed")
)
@click.argument("old", metavar="OLD", type=POLICY)
@click.argument("new", metavar="NEW", type=POLICY)
@click.option("--model", metavar="MODEL", help="Also count the neurons and weights of this model that change.")
@masks
@as_json
@click.option("--forbid-relaxed", is_flag=True, help="Exit 1 if anything is relaxed, for CI.")
@click.pass_context
def diff(
    ctx: click.Context,
    old: str,
    new: str,
    model: str | None,
    store: "Store",
    as_json: bool,
    forbid_relaxed: bool,
) -> None:
    """Print the changes from policy OLD to policy NEW, and whether each tightens or relaxes it.

    Parents are merged in first: the effective policies are compared.
    """
    changes = compare(load_policy(old), load_policy(new))
    bits = changed_bits(old, new, model, store) if model else None
    found = verdict(changes)
    if as_json:
        click.echo(json.dumps({**as_dict(changes), **({} if bits is None else {"bits": bits})}))
    else:
        click.echo("\n".join([f"{old} -> {new}: {found}", *(f"  {change}" for change in changes)]))
        for kind, counts in (bits or {}).items():
            click.echo(f"  {kind}: {counts['off']:,} more bits are off, {counts['on']:,} are back on")
    if forbid_relaxed and found in (Verdict.RELAXED, Verdict.MIXED):
        ctx.exit(1)


@policy.command(epilog=f"\b\n{EXAMPLE}\n{examples('safeflux policy test tests.yaml --format junit')}")
@click.argument("files", metavar="FILE...", type=click.Path(), nargs=-1, required=True)
@store
@form
@as_json
@click.pass_context
def test(ctx: click.Context, files: tuple[str, ...], store: "Store", form: str, as_json: bool) -> None:
    """Compare policies with the expectations in each FILE, for CI.

    Also compares what a policy's masks erase with what it says, for masks that are bundled or in a --store.
    """
    outcomes = [(file, outcome) for file in files for outcome in run_policy_test(file, store)]
    failed = [outcome for _, outcome in outcomes if outcome.fault]
    if as_json or form == "json":
        rows = [{**vars(o.origin), "expected": o.expected, "fault": o.fault} for _, o in outcomes]
        click.echo(json.dumps({"ok": not failed, "outcomes": rows}))
    elif form == "human":
        lines = [str(outcome) for _, outcome in outcomes]
        click.echo("\n".join([*lines, f"{len(outcomes) - len(failed)} of {len(outcomes)} hold"]))
    else:
        click.echo(FORMS[form]([outcome.case(file) for file, outcome in outcomes]))
    if failed:
        ctx.exit(1)


def _standard_input() -> bytes:
    if sys.stdin is None:  # the caller closed it
        raise ConfigError("-: standard input is closed; name a file, or pipe a policy in") from OSError()
    return sys.stdin.buffer.read()


def _names(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))


@policy.command(epilog=examples("safeflux policy new shop.yaml --categories weapons,alcohol"))
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--categories", type=CATEGORY, default="", callback=_names, metavar="A,B", help="Enforced, e.g. weapons,alcohol."
)
@click.option(
    "--extends",
    type=click.Choice(bundled_policies()),
    help="Its parent.  [default: moderate, or none with --categories]",
)
@as_json
def new(file: Path, categories: tuple[str, ...], extends: str | None, as_json: bool) -> None:
    """Write a new policy to FILE (NAME.yaml), and its schema for editors; existing files are not overwritten."""
    check_new(file)
    extends = extends or (None if categories else "moderate")
    text = starter(file.stem, extends, categories)
    document = parse_document(text.encode(), str(file))
    if validate(document, PolicyFile) is None:
        raise PolicyFileError(document.issues)
    write_new(file, text, SCHEMA_FILE, policy_schema())
    known = known_categories()
    warnings = [f"{name} has no bundled mask{suggest(name, known)}" for name in categories if name not in known]
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    facts = {"extends": extends, "categories": list(categories), "warnings": warnings}
    report_new(file, SCHEMA_FILE, f"policy check {file}", as_json=as_json, **facts)


@policy.command(epilog=examples("safeflux policy schema > safeflux-policy.schema.json"))
def schema() -> None:
    """Print the JSON Schema (draft-07) of a policy file, for editors."""
    click.echo(schema_text(policy_schema()), nl=False)
