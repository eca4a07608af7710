"""`safeflux mask sign` and `safeflux mask verify`: signatures by keys that lie on disk. Needs the extra `sign`."""

from pathlib import Path

import click

from safeflux.signing import sign_file, verify_file
from safeflux.signkeys import check_private_key

files = click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))


@click.command()
@files
@click.option("--key", required=True, type=click.Path(path_type=Path), help="Private key, PEM, on the curve P-256.")
@click.option(
    "--password",
    envvar="SAFEFLUX_KEY_PASSWORD",
    prompt=True,
    prompt_required=False,
    hide_input=True,
    help="The key is encrypted: ask for its password, or take it from SAFEFLUX_KEY_PASSWORD.",
)
def sign(files: tuple[Path, ...], key: Path, password: str | None) -> None:
    """Sign each FILE, or folder, with a key; the signature is written beside it, as FILE.sig.

    A policy that lists the key, by the sha256 that is printed, takes only mask files that are signed so.
    """
    digest = check_private_key(key, password.encode() if password else None).digest
    for file in files:
        click.echo(f"{sign_file(file, key, password=password)}: written, by the key sha256:{digest}")


@click.command()
@files
@click.option("--key", required=True, type=click.Path(path_type=Path), help="Public key of who signed, PEM.")
def verify(files: tuple[Path, ...], key: Path) -> None:
    """Tell whether each FILE, or folder, is what was signed with a key; exit 1 if one is not.

    The signature is FILE.sig, beside it. A folder must hold the same files as it did, and nothing more.
    """
    for file in files:
        click.echo(f"{file}: signed by the key sha256:{verify_file(file, key)}")
