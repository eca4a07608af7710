"""`safeflux audit`: verify audit logs, and print statements from them. Needs no torch."""

import json
import re
from pathlib import Path
from typing import Any

import click

from safeflux.cli._lazy import Group
from safeflux.cli._shared import as_json, pairs, password
from safeflux.errors import AuditError
from safeflux.evidence.audit import read_line, read_unbroken, verify_log


@click.group(cls=Group)
def audit() -> None:
    """Verify audit logs, and print statements from them."""


_MOST_FAULTS = 20
_EXAMPLES = """\b
Examples:
  safeflux audit verify audit.jsonl
  safeflux audit verify audit.jsonl --head 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
"""


def _digest(ctx: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """A hash as the log writes it; anything else would be reported as a truncated log."""
    if text is None or re.fullmatch(r"[0-9a-f]{64}", text := text.lower().removeprefix("sha256:")):
        return text
    raise click.BadParameter(f"expected a sha256 of 64 hex digits, got {text[:80]!r}", ctx, parameter)


@audit.command(epilog=_EXAMPLES)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--head",
    metavar="SHA256",
    callback=_digest,
    help="Hash of a line that the log must contain, kept from when it was appended.",
)
@as_json
@click.pass_context
def verify(ctx: click.Context, file: Path, head: str | None, as_json: bool) -> None:
    """Check the chain of hashes in FILE, and print the first 20 broken places; exit 1 if there is one.

    Detects edited, inserted, deleted and moved lines; with --head also a truncated end.
    """
    found = verify_log(file, head=head)
    if as_json:
        click.echo(json.dumps({"ok": not found.faults, **vars(found)}))
    elif found.faults:
        shown, others = found.faults[:_MOST_FAULTS], len(found.faults) - _MOST_FAULTS
        click.echo("\n".join(f"{file}: {fault}" for fault in shown), err=True)
        if others > 0:
            click.echo(f"{file}: and {others:,} more (--json lists them)", err=True)
    else:
        click.echo(f"{file}: {found.lines} lines, unbroken; head {found.head}")
    if found.faults:
        ctx.exit(1)


_STATEMENT = """\b
Examples:
  safeflux audit statement audit.jsonl
  safeflux audit statement audit.jsonl --line 3 --predicate guard --key KEY.pem > guard.dsse.json
"""


@audit.command(epilog=_STATEMENT)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--line", type=click.IntRange(min=1), help="Number of the line.  [default: the last with a receipt]")
@click.option(
    "--predicate",
    type=click.Choice(["test-result", "guard"]),
    default="test-result",
    show_default=True,
    help="test-result: in-toto's test result. guard: base model, masks and rates.",
)
@click.option("--key", type=click.Path(), help="PEM private key to sign with; the output is a DSSE envelope.")
@password
def statement(file: Path, line: int | None, predicate: str, key: str | None, password: str | None) -> None:
    """Print a receipt from the log FILE as an in-toto Statement in JSON; signed with --key.

    A broken log is an error.
    """
    from safeflux.evidence.envelope import sign_statement
    from safeflux.plan.statement import Predicate, make_statement

    kind = Predicate.GUARD if predicate == "guard" else Predicate.TEST_RESULT
    chosen = _line(file, line)
    try:
        found = make_statement(chosen["receipt"], kind)
    except AuditError as error:
        raise AuditError(f"{file}: line {chosen['seq']}: {error}") from error
    if key:
        found = sign_statement(found, key, password=password)
    click.echo(json.dumps(found))


def _line(file: Path, number: int | None) -> dict[str, Any]:
    """The line of this number, or the last with a receipt."""
    if number:
        return read_line(file, number)
    from safeflux.plan.receipts import RECEIPT

    lines = read_unbroken(file)
    of_receipts = [line for line in lines if line["receipt"].get("format") == RECEIPT]
    if not of_receipts:
        raise AuditError(f"{file}: expected a line with a receipt, found none in {len(lines)} lines")
    return of_receipts[-1]


_EXPORT = """\b
Examples:
  safeflux audit export audit.jsonl --oscal > results.json
  safeflux audit export audit.jsonl --oscal --last 50 --control weapons=si-4 --plan plan.json
"""


@audit.command(epilog=_EXPORT)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--oscal", is_flag=True, required=True, help="As OSCAL assessment results, in JSON.")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the last N lines.  [default: all]")
@click.option("--plan", metavar="HREF", help="Reference to the assessment plan.  [default: the policies]")
@click.option(
    "--control",
    "controls",
    metavar="CATEGORY=ID",
    multiple=True,
    callback=pairs,
    help="The control that a category implements. Repeatable.  [default: the category]",
)
def export(file: Path, oscal: bool, last: int | None, plan: str | None, controls: dict[str, str]) -> None:
    """Print the log FILE in another format: each receipt as a result, with a finding for each category.

    A broken log is an error.
    """
    from safeflux.plan.oscal import check_references, make_assessment

    try:
        check_references(plan, controls)
    except AuditError as error:
        raise click.UsageError(str(error)) from error
    lines = read_unbroken(file, last)
    try:
        made = make_assessment(lines, plan=plan, controls=controls)
    except AuditError as error:
        raise AuditError(f"{file}: {error}") from error
    click.echo(json.dumps(made, indent=2))
