"""What both forms of `safeflux eval` share: options, and where the report goes and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeflux.cli._shared import as_json, out_folder, print_rows, seed
from safeflux.cli._subject import Chosen, folder_name, subjects
from safeflux.disk.folders import check_writable

if TYPE_CHECKING:
    from safeflux.evaluation.report import Report
    from safeflux.masks.store import Store

_REPORTS = Path("runs") / "eval"


def measured(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of both commands: masks, seed and output."""
    out = out_folder("Folder for the report; created if it does not exist.  [default: runs/eval/NAME]")
    return subjects("measure")(seed(out(as_json(command))))


def choose(policy: str | None, masks: tuple[Path, ...], store: Store, out: Path | None, model: str) -> Chosen:
    """Check the output folder, and the policy or masks against the model's files, before the model is loaded."""
    check_writable(out or _REPORTS)
    chosen = Chosen.read(policy, masks, store)
    chosen.check(model)
    return chosen


def write(report: Report, out: Path | None) -> dict[str, Path]:
    """Write the report."""
    return report.write(out or _REPORTS / folder_name(report.name))


def show(report: Report, paths: dict[str, Path], as_json: bool) -> None:
    """The report as JSON, or a table of its rates, the other figures, and the files."""
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        rates = [(name, str(pair.base), str(pair.masked)) for name, pair in report.findings.rows.items()]
        print_rows(("share of pictures, 95 % interval", "base", "masked"), rates)
        lines = [f"{name}: {text}" for name, text in report.findings.facts.items()]
        click.echo("\n".join(["", *lines, "", *(f"{name:8}{path}" for name, path in paths.items())]))
    if missing := [name for name in ("matplotlib", "skimage") if find_spec(name) is None]:
        click.echo(
            f"skipped: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; get them with "
            "pip install 'safeflux[eval]'",
            err=True,
        )
