"""`safeflux train`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click


@click.command(short_help="Learn the masks of a category, end to end.")
@click.option(
    "--category", help="A category of the embedded model, e.g. weapons; its prompts come from the vocabulary."
)
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="A YAML configuration, for any model.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder.  [default: runs/CATEGORY]")
@click.option(
    "--initial",
    type=click.Path(path_type=Path),
    help="Mask file to start from; the method saliency then only exchanges bits.",
)
@click.option(
    "--with",
    "together_with",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Mask file of another category, switched on in half of the batches. Repeatable.",
)
@click.option("--seed", type=int, help="Seed of the training's prompts and noises.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any option, e.g. saliency.rounds=20.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of a summary.")
def train(
    category: str | None,
    config: Path | None,
    out: Path | None,
    initial: Path | None,
    together_with: tuple[Path, ...],
    seed: int | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    r"""Learn which weights make a category, through all sampling steps, and write a mask file.

    A run writes a checkpoint after every round. Interrupted, it goes on from there when the same command is given
    again. The result is OUT/masks.safetensors, which a policy can name once it lies in a store.

    \b
    Examples:
      safeflux train --category weapons
      safeflux train --category alcohol --with runs/weapons/masks.safetensors
      safeflux train --config my-model.yaml --out runs/mine --set saliency.rounds=20
    """
    from safeflux.trainer.session import plan_run, run

    options: dict[str, Any] = {"initial": initial, "together_with": together_with or None, "seed": seed}
    given = {key: value for key, value in options.items() if value is not None}
    planned = plan_run(category, config, settings, given)
    folder = out or Path("runs") / planned.category
    try:
        result = run(planned, folder, _Progress(planned.category))
    except KeyboardInterrupt:
        click.echo(f"interrupted; the same command goes on from the last round in {folder}", err=True)
        sys.exit(130)
    if not result.reaches_target:
        click.echo(
            f"warning: no validation found the concept in at most {100 * planned.target_found:.1f} % of its pictures; "
            "the mask is that of the last round. More rounds may help: --set saliency.rounds=N",
            err=True,
        )
    if as_json:
        click.echo(json.dumps(asdict(result) | {"path": str(result.path)}, indent=2))
    else:
        click.echo(
            f"{result.path}: {result.masked} bits off ({100 * result.share_masked:.2f} %), sha256 {result.sha256}"
        )


class _Progress:
    """A progress bar on stderr; one line a round where stderr is no terminal."""

    def __init__(self, category: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(category, total=None)
        self._bar.start()

    def __call__(self, report: Any, most: int) -> None:
        self._console.print(str(report), highlight=False, soft_wrap=True)
        self._bar.update(self._task, total=most, completed=report.round)
