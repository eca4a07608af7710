"""`safeflux policy`: write, check, explain, compare, test, plan and lock policies. Needs no torch."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeflux.atomic import write_atomically
from safeflux.cli._options import as_json, masks
from safeflux.cli.planning import changed_bits, lock, plan
from safeflux.errors import PolicyError
from safeflux.policy import Issue, Policy, PolicyFileError, bundled_policies, load_policy, policy_schema
from safeflux.policydiff import Verdict, as_dict, compare, verdict
from safeflux.policyfile import validate
from safeflux.policyschema import API_VERSION, PolicyFile
from safeflux.policytest import EXAMPLE, run_policy_test
from safeflux.yamlfile import parse_document

if TYPE_CHECKING:
    from safeflux.store import Store


@click.group()
def policy() -> None:
    """Write, check, explain, compare, test, plan and lock policies; print their JSON Schema.

    A POLICY is a bundled name (strict) or the path of a YAML file.
    """


policy.add_command(plan)
policy.add_command(lock)


@policy.command()
@click.argument("policies", metavar="POLICY...", nargs=-1, required=True)
@click.option(
    "--format",
    "form",
    type=click.Choice(["human", "json", "github"]),
    default="human",
    show_default=True,
    help="github: annotations that a pull request shows at the lines.",
)
@click.pass_context
def check(ctx: click.Context, policies: tuple[str, ...], form: str) -> None:
    """Tell every error of each POLICY with its place; exit 1 if there is one."""
    results = [_check(name) for name in policies]
    is_ok = not any(error for _, error in results)
    if form == "json":
        click.echo(json.dumps({"ok": is_ok, "policies": [result for result, _ in results]}))
    else:
        for result, error in results:
            _print_result(result, error, form)
    if not is_ok:
        ctx.exit(1)


def _check(name: str) -> tuple[dict[str, Any], PolicyFileError | None]:
    try:
        found = load_policy(name)
    except PolicyFileError as error:
        return {"policy": name, "ok": False, "issues": [issue.as_dict() for issue in error.issues]}, error
    return {"policy": name, "ok": True, "digest": found.digest, "issues": []}, None


def _print_result(result: dict[str, Any], error: PolicyFileError | None, form: str) -> None:
    if error is None:
        click.echo(f"{result['policy']}: ok, sha256:{result['digest']}")
    elif form == "github":
        for issue in error.issues:
            click.echo(_annotation(issue))
    else:
        click.echo(str(error), err=True)


def _annotation(issue: Issue) -> str:
    """A workflow command of GitHub Actions; its docs say which characters must be escaped."""
    message, file = (
        text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A") for text in (issue.message, issue.file)
    )
    file = file.replace(":", "%3A").replace(",", "%2C")
    return f"::error file={file},line={max(issue.line, 1)},col={max(issue.column, 1)}::{message}"


@policy.command()
@click.argument("name", metavar="POLICY")
@as_json
def explain(name: str, as_json: bool) -> None:
    """Show what POLICY puts in force, and the file and line each value comes from."""
    effective = load_policy(name)
    if as_json:
        click.echo(json.dumps(_as_dict(effective)))
        return
    click.echo(f"{effective.name}: {effective.description}\nsha256:{effective.digest}\n")
    values = {key: _plain(value) for key, value in effective.values().items()}
    key_width, value_width = max(map(len, values)), max(map(len, values.values()))
    for key, value in values.items():
        origin = effective.origins.get(key, "default")
        click.echo(f"{key:{key_width}}  {value:{value_width}}  {origin}")


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


@policy.command()
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option("--model", metavar="MODEL", help="Tell the neurons and weights of this model that come and go, too.")
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
    """Tell what changes from policy OLD to policy NEW, and whether each change tightens or relaxes.

    Parents are merged in first, so that what counts is what is in force.
    """
    changes = compare(load_policy(old), load_policy(new))
    bits = changed_bits(old, new, model, store) if model else None
    found = verdict(changes)
    if as_json:
        click.echo(json.dumps({**as_dict(changes), **({} if bits is None else {"bits": bits})}))
    else:
        click.echo("\n".join([f"{old} -> {new}: {found}", *(f"  {change}" for change in changes)]))
        for kind, counts in (bits or {}).items():
            click.echo(f"  {kind}: {counts['off']:,} bits more are off, {counts['on']:,} are on again")
    if forbid_relaxed and found in (Verdict.RELAXED, Verdict.MIXED):
        ctx.exit(1)


@policy.command(epilog="\b\n" + EXAMPLE)  # click reads the backspace as: keep these lines
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@as_json
@click.pass_context
def test(ctx: click.Context, files: tuple[str, ...], as_json: bool) -> None:
    """Hold policies against the expectations in each FILE; exit 1 if one fails, for CI."""
    outcomes = [outcome for file in files for outcome in run_policy_test(file)]
    failed = [outcome for outcome in outcomes if outcome.fault]
    if as_json:
        told = [{**vars(o.origin), "expected": o.expected, "fault": o.fault} for o in outcomes]
        click.echo(json.dumps({"ok": not failed, "outcomes": told}))
    else:
        click.echo("\n".join([*map(str, outcomes), f"{len(outcomes) - len(failed)} of {len(outcomes)} hold"]))
    if failed:
        ctx.exit(1)


@policy.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--extends", type=click.Choice(bundled_policies()), default="moderate", show_default=True, help="Its parent."
)
def new(file: Path, extends: str) -> None:
    """Write a policy to start from to FILE (NAME.yaml); a file that is there is left alone."""
    parent = load_policy(extends)
    if file.suffix not in (".yaml", ".yml"):
        raise click.BadParameter(f"{file}: expected a name that ends in .yaml", param_hint="FILE")
    if file.exists():
        raise PolicyError(f"{file}: is there already; choose another name")
    text = _starter(file.stem, parent).encode()
    document = parse_document(text, str(file))
    if validate(document, PolicyFile) is None:
        raise PolicyFileError(document.issues)
    try:
        write_atomically(file, text)
    except OSError as error:
        raise PolicyError(f"{file}: cannot be written ({error.strerror}); choose a folder that is there") from error
    click.echo(f"{file}: written. Edit it, then: safeflux policy check {file}")


def _starter(name: str, parent: Policy) -> str:
    """A policy that is its parent, with all that could be said beside it as comments."""
    known = {c: part.masks for other in bundled_policies() for c, part in load_policy(other).categories.items()}
    lines = [
        f"apiVersion: {API_VERSION}",
        "kind: Policy",
        f"name: {name}",
        "description: One line for the people who choose a policy.",
        f"extends: {parent.name}  # it may only be tightened; in force: {', '.join(parent.enforced)}",
        "# adapters: deny  # LoRA: deny | allowlist | allow",
        f"# budget: {{max_share_masked: {parent.budget.max_share_masked}}}  # share of what can be masked, at most",
        "# categories:  # enforce | warn | audit",
        *(
            f"#   {category}: {{action: enforce, masks: [{', '.join(masks)}]}}"
            for category, masks in known.items()
            if category not in parent.categories
        ),
    ]
    return "\n".join(lines) + "\n"


@policy.command()
def schema() -> None:
    """Print the JSON Schema (draft-07) of a policy file, for editors."""
    click.echo(json.dumps(policy_schema(), indent=2))
