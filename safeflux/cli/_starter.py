"""New files to start from, each with its JSON Schema for editors beside it; nothing is overwritten."""

import json
import os
from pathlib import Path
from typing import Any

import click

from safeflux.disk.atomic import write_atomically
from safeflux.errors import ConfigError


def check_new(file: Path) -> None:
    """Refuse a name that is no YAML file's, or that is taken.

    Raises:
        click.BadParameter: The name does not end in .yaml.
        ConfigError: There is a file of that name.
    """
    if file.suffix not in (".yaml", ".yml"):
        raise click.BadParameter(f"{file}: expected a name that ends in .yaml", param_hint="FILE")
    if os.path.lexists(file):
        raise ConfigError(f"{file}: already exists; choose another name")


def write_new(file: Path, text: str, schema_name: str, schema: dict[str, Any]) -> None:
    """Write a file, and its schema beside it where there is none: both or, on an error, neither.

    Raises:
        ConfigError: They cannot be written.
    """
    beside = file.with_name(schema_name)
    try:
        write_atomically(file, text.encode(), overwrite=False)
        try:
            if not beside.exists():
                write_atomically(beside, schema_text(schema).encode())
        except BaseException:
            file.unlink()
            raise
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror}); choose a folder that exists") from error


def report_new(file: Path, schema_name: str, command: str, *, as_json: bool, **facts: Any) -> None:
    """Print what was written: one JSON object, or a line with the command that comes next."""
    written = {"path": str(file), "schema": str(file.with_name(schema_name)), **facts}
    click.echo(json.dumps(written) if as_json else f"{file}: written. Edit it, then: safeflux {command}")


def schema_text(schema: dict[str, Any]) -> str:
    """A JSON Schema as it is printed and written."""
    return json.dumps(schema, indent=2) + "\n"
