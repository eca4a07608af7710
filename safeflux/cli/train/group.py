"""`safeflux train`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from safeflux.cli._completion import CATEGORY
from safeflux.cli._lazy import Group
from safeflux.cli._shared import DETECTOR_HELP, Bar, refuse_options_before
from safeflux.cli.train.interrupts import Interrupts
from safeflux.cli.train.new import new, schema_

_EXAMPLES = """\b
Examples:
  safeflux train --category weapons
  safeflux train --category all --out runs/catalogue
  safeflux train --category alcohol --with runs/weapons/weapons.safetensors
  safeflux train --model flux2-klein-4b --pack weapons --detector zero-shot:clip-folder
  safeflux train --config my-model.yaml --out runs/mine --set saliency.rounds=20
"""  # \b tells click to keep the line breaks


@click.group(
    cls=Group,
    invoke_without_command=True,
    subcommand_metavar="[new FILE | schema]",
    epilog=_EXAMPLES,
    short_help="Learn the masks of one or several categories, end to end.",
)
@click.option(
    "--category",
    "categories",
    type=CATEGORY,
    multiple=True,
    help="Category of the embedded model, e.g. weapons, or `all`. Repeatable: the masks of several categories are "
    "learned together, one each, so that they can be combined.",
)
@click.option("--model", help="Model: a profile (flux2-klein-4b), hub id or folder.  [default: emoji-flux]")
@click.option("--pack", "packs", multiple=True, help="Pack: a bundled name or a YAML file. Repeatable, as --category.")
@click.option("--detector", help=f"Detector for validation: {DETECTOR_HELP}")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="YAML file of a run; `train new` writes one."
)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/CATEGORY]")
@click.option(
    "--initial",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Mask file of a trained category to start from. Repeatable.",
)
@click.option(
    "--with",
    "together_with",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Mask file of another category. It is not changed, and is switched on in some of the batches. Repeatable.",
)
@click.option("--seed", type=int, help="Seed of prompts and noises.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any option, e.g. saliency.rounds=20.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print memory, disk, minutes, prompts and anchors; train nothing. Exit 1 if it does not fit.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of a summary.")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    categories: tuple[str, ...],
    model: str | None,
    packs: tuple[str, ...],
    detector: str | None,
    config: Path | None,
    out: Path | None,
    initial: tuple[Path, ...],
    together_with: tuple[Path, ...],
    seed: int | None,
    settings: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Learn which weights draw a category, through all sampling steps, and write one mask file per category.

    A checkpoint is written after every round. After an interruption the same command resumes from it. Ctrl-C waits for
    the round in progress; a second Ctrl-C stops at once.

    `safeflux train new FILE` writes a file for --config to start from.

    The results are OUT/CATEGORY.safetensors. OUT is a mask store: policies find them there with `--store OUT`.
    """
    if ctx.invoked_subcommand is not None:
        refuse_options_before(ctx)
        return
    from safeflux.trainer.run.planning import plan_run
    from safeflux.trainer.run.session import is_validated, run

    options: dict[str, Any] = {"initial": initial or None, "together_with": together_with or None, "seed": seed}
    given = {key: value for key, value in options.items() if value is not None}
    planned = plan_run(_named(categories), config, settings, given, packs=packs, model=model, detector=detector)
    folder = out or Path("runs") / "-".join(planned.categories)
    if dry_run:
        _show_needs(planned, folder)
        return
    if not is_validated(planned):
        click.echo(f"note: {_unvalidated(planned.model, folder)}", err=True)
    try:
        with Bar() as bar, Interrupts(bar.note) as interrupts:

            def report_round(report: Any, most: int) -> None:
                interrupts.round_ends()
                bar.note(str(report))
                bar(f"rounds for {', '.join(planned.categories)}", report.round, most)

            result = run(
                planned,
                folder,
                report_round,
                phase=bar,
                begins=interrupts.round_begins,
                stops=lambda: interrupts.is_stopping,
                note=bar.note,
            )
    except KeyboardInterrupt:
        click.echo(
            f"interrupted; the same command resumes after the last round with a checkpoint in {folder}", err=True
        )
        sys.exit(130)
    if result is None:  # the first process of the run prints the summary
        return
    if not result.validation:
        click.echo(f"warning: {_unvalidated(planned.model, folder)}", err=True)
    elif not result.reaches_target:
        click.echo(
            f"warning: no validation found every category in at most {100 * planned.target_found:.1f} % of its "
            "pictures; the masks are the ones that came closest. More rounds may help: --set saliency.rounds=N",
            err=True,
        )
    if as_json:
        click.echo(json.dumps(asdict(result), indent=2, default=str))
        return
    for category, path in result.paths.items():
        click.echo(f"{path}: {result.masked[category]} bits off, sha256 {result.sha256[category]}")


train.add_command(new)
train.add_command(schema_)


def _show_needs(planned: Any, folder: Path) -> None:
    from safeflux.trainer.run.dry_run import dry_run

    with Bar() as bar:
        bar("measuring one step", 0, 1)
        needs = dry_run(planned, folder)
    if needs is None:  # the first process of the run prints them
        return
    click.echo(str(needs))
    if not needs.fits:
        sys.exit(1)


def _named(categories: tuple[str, ...]) -> tuple[str, ...]:
    from safeflux.reference.vocabulary import vocabulary

    return tuple(vocabulary().targets) if "all" in categories else categories


def _unvalidated(model: str, folder: Path) -> str:
    return (
        f"nothing validates the masks of {model}, since no detector is named (--detector): the run ends when its "
        f"erasure loss no longer falls, and the masks of its last round are the result, however well they erase. Look "
        f"at the pictures in {folder / 'pictures'}, and measure the masks with `safeflux eval`."
    )
