"""Options that several commands have."""

import click

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
store = click.option(
    "--store", multiple=True, type=click.Path(exists=True, file_okay=False), help="A folder with masks; repeatable."
)
keys = click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="A public key, PEM, of who may have signed the masks; repeatable.",
)
lock = click.option(
    "--lock", type=click.Path(exists=True, dir_okay=False), help="Fail unless all is as in this lock file."
)
policy = click.option("--policy", default="strict", show_default=True, help="A bundled name, or a YAML file.")
