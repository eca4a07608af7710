"""Log lines of the package on stderr, as many as `-q` and `-v` ask for."""

import logging

import click

_LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)


class _Stderr(logging.Handler):
    """Prints each record as a line: its level, and what it says."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        click.echo(f"{record.levelname.lower()}: {record.getMessage()}", err=True)


def show_logs(*, quiet: bool, verbose: int) -> None:
    """Print the package's log lines from now on.

    Args:
        quiet: Errors alone.
        verbose: 0 for warnings too, 1 for what was done to models, 2 for details.
    """
    log = logging.getLogger("safeflux")
    for handler in list(log.handlers):
        if isinstance(handler, _Stderr):
            log.removeHandler(handler)
    log.addHandler(_Stderr())
    log.setLevel(_LEVELS[0 if quiet else min(verbose, 2) + 1])


def is_quiet() -> bool:
    """Whether the command that runs was asked for errors alone."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().params.get("quiet"))
