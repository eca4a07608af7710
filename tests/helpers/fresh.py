"""What a fresh interpreter has imported after running some code."""

import subprocess
import sys
import time

RUN_CLI = (
    "from safeflux.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
)
"""Runs the command line with some arguments; it must succeed."""


def modules_after(code: str) -> tuple[set[str], float]:
    """The modules that a fresh interpreter holds after running code, and the seconds it took in all."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}\nimport sys\nprint('LOADED', *sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - start
    return set(done.stdout.rpartition("LOADED")[2].split()), seconds
