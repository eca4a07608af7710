"""The `safeflux` command: each subcommand parses, calls one function of the API, and prints.

Start-up only needs the table below. A command's module is imported when that command runs, so `safeflux --help` is
instant, and only the commands that run models wait for torch.
"""

import click

from safeflux._version import __version__
from safeflux.cli._lazy import EXIT_CODES, LazyGroup
from safeflux.cli._logs import show_logs

COMMANDS = {
    "demo": ("safeflux.cli.demo", "demo", "Guard the embedded model with a policy; before/after report."),
    "policy": ("safeflux.cli.policy.group", "policy", "Write, check, explain, compare and test policies."),
    "mask": ("safeflux.cli.mask.group", "mask", "Show, compare, combine, import, export and sign mask files."),
    "bake": ("safeflux.cli.bake", "bake_command", "Write a guarded copy of a model's files."),
    "verify": ("safeflux.cli.bake", "verify_command", "Check whether a model's files are guarded."),
    "serve": ("safeflux.cli.serve", "serve", "Serve a guarded model over HTTP, one policy per request."),
    "onnx": ("safeflux.cli.onnx", "onnx", "Write guarded ONNX models."),
    "doctor": ("safeflux.cli.doctor", "doctor", "Report problems of this installation."),
    "audit": ("safeflux.cli.audit", "audit", "Verify audit logs, and print statements from them."),
    "eval": ("safeflux.cli.eval.group", "evaluate", "Measure what masks erase and what they leave alone."),
    "preview": ("safeflux.cli.preview", "preview", "Draw any model before and after a policy, on one page."),
    "pack": ("safeflux.cli.pack", "pack", "List, check and write packs: categories in words."),
    "attack": ("safeflux.cli.attack", "attack", "Attack masks, and measure what comes back beside controls."),
    "train": ("safeflux.cli.train.group", "train", "Learn the masks of a category, end to end."),
}


@click.group(cls=LazyGroup, table=COMMANDS, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="safeflux", message="%(prog)s %(version)s")
@click.option("-q", "--quiet", is_flag=True, help="Print only results and errors, no warnings or progress.")
@click.option("-v", "--verbose", count=True, help="Also print every change to models; -vv for details.")
def main(quiet: bool, verbose: int) -> None:
    """Content safety that lives in the weights of FLUX models.

    A policy names content categories; each maps to trained masks; the masks are written into the model in place.
    """
    if quiet and verbose:
        raise click.UsageError("expected one of -q and -v, got both")
    show_logs(quiet=quiet, verbose=verbose)
