"""`safeflux train`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from safeflux.cli._shared import Bar

_EXAMPLES = """\b
Examples:
  safeflux train --category weapons
  safeflux train --category all --out runs/catalogue
  safeflux train --category alcohol --with runs/weapons/weapons.safetensors
  safeflux train --config my-model.yaml --out runs/mine --set saliency.rounds=20
"""  # click reads the backspace as: keep these lines


@click.command(epilog=_EXAMPLES, short_help="Learn the masks of one or several categories, end to end.")
@click.option(
    "--category",
    "categories",
    multiple=True,
    help="A category of the embedded model, e.g. weapons; its prompts come from the vocabulary. Repeatable: several "
    "are learned together, a mask each, so that any of them may be AND-ed. `all`: all of them.",
)
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="A YAML configuration, for any model.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder.  [default: runs/CATEGORY]")
@click.option(
    "--initial",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Mask file to start from, of a category that is trained. Repeatable.",
)
@click.option(
    "--with",
    "together_with",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Mask file of another category, which stays as it is and is on in a part of the batches. Repeatable.",
)
@click.option("--seed", type=int, help="Seed of the training's prompts and noises.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any option, e.g. saliency.rounds=20.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of a summary.")
def train(
    categories: tuple[str, ...],
    config: Path | None,
    out: Path | None,
    initial: tuple[Path, ...],
    together_with: tuple[Path, ...],
    seed: int | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Learn which weights make a category, through all sampling steps, and write a mask file for each.

    A run writes a checkpoint after every round. Interrupted, it goes on from there when the same command is given
    again. The results are OUT/CATEGORY.safetensors, which a policy can name once they lie in a store.
    """
    from safeflux.trainer.session import plan_run, run

    options: dict[str, Any] = {"initial": initial or None, "together_with": together_with or None, "seed": seed}
    given = {key: value for key, value in options.items() if value is not None}
    planned = plan_run(_named(categories), config, settings, given)
    folder = out or Path("runs") / "-".join(planned.categories)
    what = ", ".join(planned.categories)
    try:
        with Bar() as bar:

            def told(report: Any, most: int) -> None:
                bar.note(str(report))
                bar(what, report.round, most)

            result = run(planned, folder, told, lambda done, total: bar("base model's outputs", done, total))
    except KeyboardInterrupt:
        click.echo(f"interrupted; the same command goes on from the last round in {folder}", err=True)
        sys.exit(130)
    if result is None:  # another process of the same run tells
        return
    if not result.reaches_target:
        click.echo(
            f"warning: no validation found every category in at most {100 * planned.target_found:.1f} % of its "
            "pictures; the masks are those that came nearest. More rounds may help: --set saliency.rounds=N",
            err=True,
        )
    if as_json:
        click.echo(json.dumps(asdict(result), indent=2, default=str))
        return
    for category, path in result.paths.items():
        click.echo(f"{path}: {result.masked[category]} bits off, sha256 {result.sha256[category]}")


def _named(categories: tuple[str, ...]) -> tuple[str, ...]:
    from safeflux.reference.vocabulary import vocabulary

    return tuple(vocabulary().targets) if "all" in categories else categories
