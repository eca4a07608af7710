"""`safeflux policy`: write, check, explain, compare, test, plan and lock policies. Needs no torch."""

import json
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from safeflux.cli._completion import POLICY
from safeflux.cli._lazy import Group, exit_code
from safeflux.cli._shared import as_json, examples, masks, store, stores
from safeflux.cli.policy.new import new, schema
from safeflux.cli.policy.plan import changed_bits, lock, plan
from safeflux.errors import ConfigError, SafeFluxError
from safeflux.policy.characters import printable
from safeflux.policy.check import STDIN, Checked, expand, findings_of
from safeflux.policy.check import check as check_policy
from safeflux.policy.diff import Verdict, as_dict, compare, verdict
from safeflux.policy.expectations import EXAMPLE, Outcome, run_policy_test
from safeflux.policy.load import Policy, PolicyFileError, load_policy
from safeflux.policy.report import FORMS, Case

if TYPE_CHECKING:
    from safeflux.masks.store import Store


@click.group(cls=Group)
def policy() -> None:
    """Write, check, explain, compare, test, plan and lock policies; print their JSON Schema.

    A POLICY is a bundled name (strict) or the path of a YAML file.
    """


policy.add_command(plan)
policy.add_command(lock)
policy.add_command(new)
policy.add_command(schema)


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

    if stores:
        masks()  # one that is missing is an error of its own, not one of each policy
    names = expand(policies)
    stdin = _standard_input() if STDIN in names else b""
    form = _chosen(form, as_json)
    results = [check_policy(name, masks, has_own=bool(stores), stdin=stdin) for name in names]
    cases = [result.case for result in results]
    failed = [result for result in results if result.case.errors]
    if form == "json":
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


def _chosen(form: str, as_json: bool) -> str:
    """The format; `--json` is short for one of them."""
    if as_json and form not in ("human", "json"):
        raise click.UsageError(f"expected one of --json and --format {form}, got both")
    return "json" if as_json else form


def _print_result(result: Checked, form: str) -> None:
    if not result.case.errors:
        click.echo(f"{printable(result.name)}: ok, sha256:{result.digest}")
    if form == "github":
        click.echo(FORMS[form]([result.case]), nl=bool(result.findings))
    elif isinstance(result.error, PolicyFileError):
        click.echo(str(result.error), err=True)  # with excerpts
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
    form = _chosen(form, as_json)
    outcomes: list[Outcome] = []
    cases: list[Case] = []
    errors: list[tuple[SafeFluxError, str]] = []
    for file in files:
        try:
            found = run_policy_test(file, store)
        except SafeFluxError as error:  # the other files are tested all the same
            errors.append((error, file))
            cases.append(Case(file, "can be tested", findings_of(error, file)))
        else:
            outcomes += found
            cases += [outcome.case(file) for outcome in found]
    num_failed = sum(bool(outcome.fault) for outcome in outcomes)
    if form == "json":
        rows = [{**vars(o.origin), "expected": o.expected, "fault": o.fault} for o in outcomes]
        unread = [finding.as_dict() for error, file in errors for finding in findings_of(error, file)]
        click.echo(json.dumps({"ok": not (num_failed or errors), "outcomes": rows, "errors": unread}))
    elif form == "human":
        _print_outcomes(outcomes, num_failed, errors)
    else:
        click.echo(FORMS[form](cases))
    if num_failed or errors:
        ctx.exit(max([1, *(exit_code(error) for error, _ in errors)]))


def _print_outcomes(outcomes: list[Outcome], num_failed: int, errors: list[tuple[SafeFluxError, str]]) -> None:
    for error, file in errors:
        with_excerpts = isinstance(error, PolicyFileError)
        click.echo(str(error) if with_excerpts else "\n".join(map(str, findings_of(error, file))), err=True)
    missing = f"; not tested: {len(errors)} of the files" if errors else ""
    lines = [str(outcome) for outcome in outcomes]
    click.echo("\n".join([*lines, f"{len(outcomes) - num_failed} of {len(outcomes)} hold{missing}"]))


def _standard_input() -> bytes:
    if sys.stdin is None:  # the caller closed it
        raise ConfigError("-: standard input is closed; name a file, or pipe a policy in") from OSError()
    return sys.stdin.buffer.read()
