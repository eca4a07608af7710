"""Ctrl-C for processes that tests start."""

import signal


def heed_key_presses() -> None:
    """Take SIGINT again, as the `preexec_fn` of a process: background jobs of a shell ignore it, and pass that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
