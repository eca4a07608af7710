"""Commands in processes of their own that do not import torch again: copies of one that has."""

import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from safeflux.cli import main


def begin(arguments: list[str], errors: Path) -> BaseProcess:
    """Begin `safeflux ARGUMENTS` as a terminal would, heeding key presses; a file takes its stderr."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["safeflux.trainer.run.session"])
    errors.touch()
    process = context.Process(target=_run, args=(arguments, errors))
    process.start()
    return process


def _run(arguments: list[str], errors: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    main(arguments, prog_name="safeflux")
