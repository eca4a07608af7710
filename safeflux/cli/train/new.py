"""`safeflux train new` and `safeflux train schema`."""

from pathlib import Path

import click

from safeflux.cli._shared import DETECTOR_HELP, MODEL_HELP, as_json, examples
from safeflux.cli._starter import check_new, report_new, schema_text, write_new


@click.command(
    epilog=examples(
        "safeflux train new run.yaml --model flux2-klein-4b --pack weapons --detector zero-shot:clip-folder",
        "safeflux train new run.yaml --model my-flux --pack vehicles.yaml",
    )
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--model", default="flux2-klein-4b", show_default=True, help=MODEL_HELP)
@click.option("--pack", "packs", multiple=True, help="A bundled pack, or a YAML file. Repeatable.  [default: weapons]")
@click.option("--detector", help=f"Looks at the pictures: {DETECTOR_HELP}")
@as_json
def new(file: Path, model: str, packs: tuple[str, ...], detector: str | None, as_json: bool) -> None:
    """Write FILE (NAME.yaml) for `train --config`, and its schema for editors; existing files are not overwritten.

    Every option is in it with its meaning and the value that the model and the packs give it, as a comment.
    """
    check_new(file)
    from safeflux.trainer.asked.run_file import run_schema
    from safeflux.trainer.asked.starter import SCHEMA_FILE, starter

    packs = packs or ("weapons",)
    text = starter(model, packs, detector)
    write_new(file, text, SCHEMA_FILE, run_schema())
    report_new(file, SCHEMA_FILE, f"train --config {file} --dry-run", as_json=as_json, model=model, packs=list(packs))


@click.command("schema", epilog=examples("safeflux train schema > safeflux-train.schema.json"))
def schema_() -> None:
    """Print the JSON Schema (draft-07) of a --config file, for editors."""
    from safeflux.trainer.asked.run_file import run_schema

    click.echo(schema_text(run_schema()), nl=False)
