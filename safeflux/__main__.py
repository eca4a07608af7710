"""The `safeflux` command, also as `python -m safeflux`."""

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line. An interrupt while its modules load ends it as one while it runs does."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # a shell may have it ignored
        signal.signal(signal.SIGINT, _end)
    from safeflux.cli import main as command

    signal.signal(signal.SIGINT, usual)
    command(prog_name="safeflux")


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
