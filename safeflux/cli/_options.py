"""Options that several commands have."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
lock = click.option(
    "--lock", type=click.Path(exists=True, dir_okay=False), help="Fail unless all is as in this lock file."
)
policy = click.option("--policy", default="strict", show_default=True, help="A bundled name, or a YAML file.")
_store = click.option(
    "--store", multiple=True, type=click.Path(exists=True, file_okay=False), help="A folder with masks; repeatable."
)
_keys = click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="A public key, PEM, of who may have signed the masks; repeatable.",
)


def masks(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where masks are, and who may have signed them; the command gets a `store` of both."""

    @_store
    @_keys
    @wraps(command)
    def run(*arguments: Any, store: tuple[str, ...], keys: tuple[str, ...], **options: Any) -> Any:
        from safeflux.store import open_store

        return command(*arguments, store=open_store(store or None, keys), **options)

    return run
