"""The `safeflux` command: each subcommand parses, calls one function of the API, and prints.

The table below is all that starting up needs. A command's module is imported when that command runs, so that
`safeflux --help` answers at once and only the commands that work on models wait for torch.
"""

import click

from safeflux import __version__
from safeflux.cli._lazy import LazyGroup

COMMANDS = {
    "demo": ("safeflux.cli.demo", "demo", "Guard the embedded model with a policy; before/after report."),
    "policy": ("safeflux.cli.policy", "policy", "Write, check, explain, compare and test policies."),
    "mask": ("safeflux.cli.mask", "mask", "Look into mask files, compare, join, import, export and sign them."),
    "bake": ("safeflux.cli.bake", "bake_command", "Write a guarded copy of a model's files."),
    "verify": ("safeflux.cli.bake", "verify_command", "Tell whether a model's files are guarded."),
    "onnx": ("safeflux.cli.onnx", "onnx", "Write guarded ONNX models."),
    "doctor": ("safeflux.cli.doctor", "doctor", "Tell what is wrong with this installation."),
    "audit": ("safeflux.cli.audit", "audit", "Look through the log of what was done to models."),
    "eval": ("safeflux.cli.eval", "evaluate", "Measure what masks erase and what they leave alone."),
    "train": ("safeflux.cli.train", "train", "Learn the masks of a category, end to end."),
}


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="safeflux", message="%(prog)s %(version)s")
def main() -> None:
    """Content safety that lives in the weights of FLUX models.

    A policy names content categories; each maps to trained masks; the masks are written into the model in place. Exit
    codes: 0 done, 1 an error that is told in words, 2 wrong use of the command.
    """
