"""The `safeflux` command, also as `python -m safeflux`."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def main() -> None:
    """Run the command line. An interrupt before or after a command ends it as one while it runs does.

    Before are imports and the reading of the arguments; after, the end of the interpreter. A `KeyboardInterrupt` there
    would be a traceback.
    """
    is_heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell may have it ignored
    if is_heeded:
        signal.signal(signal.SIGINT, _end)
    from safeflux.cli import main as command

    command(prog_name="safeflux", obj=_interruptible if is_heeded else None)


@contextmanager
def _interruptible() -> Iterator[None]:
    """A context in which an interrupt is a `KeyboardInterrupt`, so that a command can leave nothing half-written."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
