"""Ctrl-C during a training run."""

import _thread
import signal
import socket
from collections.abc import Callable
from threading import Thread


class Interrupts:
    """Ctrl-C during a round waits for its end; a second one, or one outside a round, stops at once.

    Python runs signal handlers in the main thread, which may be inside a long operation of torch. So a separate thread
    answers the key press.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.is_stopping, self._say, self._round, self._presses = False, say, 0, 0
        self._is_over, self._is_reminded = False, False
        self._is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as of a job in the background

    def round_begins(self, number: int) -> None:
        """From now on Ctrl-C waits."""
        self._round = number

    def round_ends(self) -> None:
        """The checkpoint of the round is on disk."""
        self._round = 0

    def __enter__(self) -> "Interrupts":
        """Take over Ctrl-C."""
        if not self._is_ignored:
            self._far, self._near = socket.socketpair()
            self._near.setblocking(False)
            self._before = signal.signal(signal.SIGINT, self._handle)
            self._descriptor = signal.set_wakeup_fd(self._near.fileno(), warn_on_full_buffer=False)
            Thread(target=self._answer, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Give Ctrl-C back."""
        self._is_over = True
        if not self._is_ignored:
            signal.set_wakeup_fd(self._descriptor)
            signal.signal(signal.SIGINT, self._before)
            self._near.close()

    def _handle(self, number: int, frame: object) -> None:
        # Python calls this once for signals that came during one long operation; the thread counts them, maybe later.
        is_reminder, self._is_reminded = self._is_reminded, False
        if is_reminder and self._is_over:
            return  # the second key press has been heeded by itself
        if self.is_stopping or self._presses > 1 or not self._round:
            self._is_over = True
            raise KeyboardInterrupt
        self.is_stopping = True

    def _answer(self) -> None:
        with self._far:
            while number := self._far.recv(1):
                self._presses += number[0] == signal.SIGINT
                if self._round and self._presses == 1:
                    self._say(
                        f"Ctrl-C: waiting for the end of round {self._round} and its checkpoint. Press it again to "
                        "stop at once and lose this round. The same command resumes the run."
                    )
                if self._presses == 2 and not self._is_over:
                    self._is_reminded = True
                    _thread.interrupt_main()
