"""What both forms of `safeflux eval` share: options, the masks that are measured, and where the report goes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeflux.cli._completion import MASK, POLICY
from safeflux.cli._shared import as_json, out_folder, print_rows, seed
from safeflux.cli._shared import masks as mask_stores
from safeflux.disk.folders import check_writable

if TYPE_CHECKING:
    from safeflux.evaluation.report import Report
    from safeflux.evaluation.subject import Subject
    from safeflux.masks.store import Store

_REPORTS = Path("runs") / "eval"


def measured(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of both commands: masks, seed and output."""
    for option in (
        as_json,
        out_folder("Folder for the report; created if it does not exist.  [default: runs/eval/NAME]"),
        seed,
        click.option(
            "--mask",
            "masks",
            type=MASK,
            multiple=True,
            help="Mask file, or bundled mask, to measure instead of a policy. Repeatable: the masks are combined.",
        ),
        mask_stores,
        click.option("--policy", type=POLICY, help="Bundled policy, or path of a YAML file.  [default: strict]"),
    ):
        command = option(command)
    return command


def subject_reader(
    policy: str | None, masks: tuple[Path, ...], out: Path | None, model: str, store: Store
) -> Callable[[Any], Subject]:
    """Check the output folder, and the policy or masks against the model's files, before the model is loaded."""
    if policy and masks:
        raise click.UsageError("give either --policy or --mask, not both")
    check_writable(out or _REPORTS)
    from safeflux.evaluation.subject import MaskFile, check_early, files_subject, policy_subject
    from safeflux.policy.load import load_policy

    if masks:
        files = [MaskFile.read(path) for path in masks]
        check_early(files, model)
        return lambda pipe: files_subject(files, pipe)
    loaded = load_policy(policy or "strict")
    check_early(loaded, model, store)
    return lambda pipe: policy_subject(loaded, pipe, store)


def write(report: Report, out: Path | None) -> dict[str, Path]:
    """Write the report. Names of mask files and policies come from others, so only safe characters are used."""
    return report.write(out or _REPORTS / re.sub(r"[^A-Za-z0-9_+-]+", "-", report.name))


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
