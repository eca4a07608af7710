"""`safeflux mask sign` and `safeflux mask verify`: signatures with keys on disk. Needs the extra `sign`."""

import json
from pathlib import Path

import click

from safeflux.cli._lazy import exit_code
from safeflux.cli._shared import as_json, password
from safeflux.errors import SignatureError
from safeflux.evidence.keys import check_private_key, read_public_key
from safeflux.evidence.signatures import check_plain, sign_file, verify_file

files = click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))


_SIGN = """\b
Examples:
  safeflux mask sign weapons.safetensors --key KEY.pem
"""
_VERIFY = """\b
Examples:
  safeflux mask verify weapons.safetensors --key PUB.pem
"""


@click.command(epilog=_SIGN)
@files
@click.option("--key", required=True, type=click.Path(path_type=Path), help="Private key, PEM, on the curve P-256.")
@password
@as_json
def sign(files: tuple[Path, ...], key: Path, password: str | None, as_json: bool) -> None:
    """Sign each FILE, or folder, with a key; the signature is written next to it, as FILE.sig.

    A policy that lists the key, by the sha256 that is printed, only accepts mask files that are signed with it.
    """
    digest = check_private_key(key, password.encode() if password else None).digest
    for file in files:  # all of them first, so that one that cannot be signed leaves no others signed
        check_plain(file)
    signed = [(file, sign_file(file, key, password=password)) for file in files]
    if as_json:
        rows = [{"file": str(file), "signature": str(signature)} for file, signature in signed]
        click.echo(json.dumps({"key": digest, "signed": rows}))
    else:
        click.echo("\n".join(f"{signature}: written, with the key sha256:{digest}" for _, signature in signed))


@click.command(epilog=_VERIFY)
@files
@click.option("--key", required=True, type=click.Path(path_type=Path), help="PEM public key of the signer.")
@as_json
@click.pass_context
def verify(ctx: click.Context, files: tuple[Path, ...], key: Path, as_json: bool) -> None:
    """Check that each FILE, or folder, is unchanged since it was signed with a key.

    The signature is FILE.sig, next to it. A folder must hold the same files, and nothing more.
    """
    read_public_key(key)  # a wrong key is one error, not one of each file
    signed: dict[str, str] = {}
    errors: dict[str, SignatureError] = {}
    for file in files:
        try:
            signed[str(file)] = verify_file(file, key)
        except SignatureError as error:
            errors[str(file)] = error
    if as_json:
        faults = {"errors": {name: str(fault) for name, fault in errors.items()}} if errors else {}
        click.echo(json.dumps({"ok": not errors, "signed": signed, **faults}))
    else:
        for name, digest in signed.items():
            click.echo(f"{name}: signed with the key sha256:{digest}")
        for fault in errors.values():
            click.echo(f"error: {fault}", err=True)
    if errors:
        ctx.exit(max(map(exit_code, errors.values())))
