"""`safeflux mask publish`."""

import json
from pathlib import Path

import click

from safeflux.cli._completion import MASK
from safeflux.cli._shared import as_json
from safeflux.disk.staging import check_new, staged
from safeflux.masks.repository import lay_out

_PUBLISH = """\b
Examples:
  safeflux mask publish runs/vehicles/vehicles.safetensors masks-repo --repo ORG/NAME
  hf upload ORG/NAME masks-repo
"""


@click.command(epilog=_PUBLISH)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=MASK)
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--repo", "repository", metavar="ORG/NAME", required=True, help="The repository that it is for.")
@as_json
def publish(files: tuple[Path, ...], out: Path, repository: str, as_json: bool) -> None:
    """Lay out the mask FILEs in the new folder OUT as a repository of the Hugging Face Hub, to be uploaded with `hf`.

    Each file lies in the folder of its base model, beside its signature, if it has one, and its card. README.md is the
    card that the hub shows: base models, licence, tags, and the figures of each file. OUT appears once it is whole.
    """
    check_new(out)
    laid_out = lay_out(files, repository)
    with staged(out, sum(map(len, laid_out.values()))) as folder:
        for place, data in laid_out.items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    upload = f"hf upload {repository} {out}"
    if as_json:
        click.echo(json.dumps({"folder": str(out), "files": sorted(laid_out), "upload": upload}))
        return
    click.echo("\n".join(f"{out / place}: written" for place in laid_out))
    click.echo(f"upload it with: {upload}")
