"""`safeflux policy`: check and show policies, and print the JSON Schema that editors read. None of it needs torch."""

import json
from typing import Any

import click

from safeflux.policy import Policy, PolicyFileError, load_policy, policy_schema

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def policy() -> None:
    """Check and show policies; print their JSON Schema.

    A POLICY is a bundled name (strict) or the path of a YAML file.
    """


@policy.command()
@click.argument("policies", metavar="POLICY...", nargs=-1, required=True)
@as_json
@click.pass_context
def check(ctx: click.Context, policies: tuple[str, ...], as_json: bool) -> None:
    """Tell every error of each POLICY with its place; exit 1 if there is one."""
    results = [_check(name) for name in policies]
    if as_json:
        click.echo(json.dumps({"ok": all(result["ok"] for result, _ in results), "policies": [r for r, _ in results]}))
    else:
        for result, error in results:
            _print_result(result, error)
    if not all(result["ok"] for result, _ in results):
        ctx.exit(1)


def _check(name: str) -> tuple[dict[str, Any], PolicyFileError | None]:
    try:
        found = load_policy(name)
    except PolicyFileError as error:
        return {"policy": name, "ok": False, "issues": [issue.as_dict() for issue in error.issues]}, error
    return {"policy": name, "ok": True, "digest": found.digest, "issues": []}, None


def _print_result(result: dict[str, Any], error: PolicyFileError | None) -> None:
    if error is None:
        click.echo(f"{result['policy']}: ok, sha256:{result['digest']}")
    else:
        click.echo(str(error), err=True)


@policy.command()
@click.argument("name", metavar="POLICY")
@as_json
def show(name: str, as_json: bool) -> None:
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
def schema() -> None:
    """Print the JSON Schema (draft-07) of a policy file, for editors."""
    click.echo(json.dumps(policy_schema(), indent=2))
