"""Requests for pictures under several policies on one model: who draws next, and when the policy is switched.

Requests for the policy in force go first, so that it is not switched for each picture; but once it has been in force
for some seconds while a request for another waits, it is the other's turn. A request therefore waits for at most so
many seconds for each other policy, beside the pictures that are being drawn then.

As with `turn_lock`, which this stands on, a request is a ticket in a list, and no lock is held: an exception at any
moment leaves nothing taken. Only who comes first is decided here. That a picture is drawn under its policy is made sure
of by the turn that it draws in.
"""

import _thread
import time
from collections.abc import Callable

from safeflux.errors import ApplyError
from safeflux.model.turn_lock import Drawing, Ticket, Turns, forget

_POLL = 0.25
"""Seconds after which a request checks by itself whether its turn has come, though nobody rang. Those behind the first
check less often, so that many cost those who draw no more than a few."""


class Request(Ticket):
    """One thread's wish to draw under a policy, until `end`."""

    __slots__ = ("_bell", "drawing", "is_inner", "policy", "since")

    def __init__(self, policy: str) -> None:
        """Queue nowhere yet.

        Args:
            policy: Its name in the pool.
        """
        super().__init__("drawing")
        self.policy = policy
        self.since = time.monotonic()
        self.drawing: Drawing | None = None
        self.is_inner = False
        """Whether its thread is drawing under this policy already."""
        self._bell = _thread.allocate_lock()
        self._bell.acquire()

    def wait(self, seconds: float) -> None:
        """Sleep until somebody rings, or so long."""
        self._bell.acquire(timeout=max(0.0, seconds))

    def ring(self) -> None:
        """Wake its thread."""
        try:
            self._bell.release()
        except RuntimeError:  # it rings already
            return


class _Term:
    """A policy's time in force."""

    __slots__ = ("num_begun", "since")

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.num_begun = 0
        """Pictures that were begun in it."""


class Queue:
    """The requests on one model."""

    def __init__(
        self,
        turns: Turns,
        in_force: Callable[[], str],
        switch: Callable[[str], None],
        *,
        at_once: int,
        patience: float,
    ) -> None:
        """Begin with no requests.

        Args:
            turns: The model's.
            in_force: Returns the name of the policy in force, or raises ApplyError if none of the pool is.
            switch: Puts the policy of a name in force; called while nobody draws.
            at_once: How many pictures may be drawn at the same time.
            patience: Seconds for which a policy stays in force while a request for another waits.
        """
        self._turns, self._in_force, self._put_in_force = turns, in_force, switch
        self._at_once, self._patience = at_once, patience
        self._waiting: list[Request] = []
        self._drawing: list[Request] = []
        self._term = _Term()

    @property
    def num_waiting(self) -> int:
        """How many requests wait."""
        return len(_live(self._waiting))

    def enter(self, request: Request, timeout: float | None) -> None:
        """Return when the request may draw, under its policy.

        Raises:
            ApplyError: No policy of the pool is in force any more, the switch failed, this thread draws under another
                policy, or `timeout` seconds went by.
        """
        for other in _live(self._drawing):
            if other.is_mine and other is not request:
                if other.policy != request.policy:
                    raise ApplyError(
                        f"this thread is drawing under {other.policy!r}; finish that before drawing under "
                        f"{request.policy!r}"
                    )
                request.is_inner = True
                return
        self._waiting.append(request)
        while not self._begins(request):
            left = float("inf") if timeout is None else request.since + timeout - time.monotonic()
            if left <= 0:
                raise ApplyError(f"waited {timeout:g} seconds to draw under {request.policy!r}; nothing was drawn")
            request.wait(min(left, self._pause(request)))

    def leave(self, request: Request) -> None:
        """End a request, whether it waits or draws; doing it twice does nothing more."""
        if request.is_inner:
            return
        request.end()
        if request.drawing is not None:
            request.drawing.__exit__(None, None, None)
        for queue in (self._waiting, self._drawing):
            forget(queue, request)
        self.wake()

    def wake(self) -> None:
        """Ring for those whose time may have come."""
        waiting = _live(self._waiting)
        if not waiting:
            return
        try:
            standing = self._in_force()
        except ApplyError:
            woken = waiting
        else:
            same, other = _parted(waiting, standing)
            woken = [*same[: self._at_once], *other[:1]]
        for request in woken:
            request.ring()

    def _begins(self, request: Request) -> bool:
        """Begin to draw if it is the request's time, after a switch if that is its time too."""
        standing = self._in_force()
        same, other = _parted(_live(self._waiting), standing)
        goes_on = not other or time.monotonic() < self._end_of_term(other[0])
        if request.policy == standing:
            is_next = request in same[: max(0, self._at_once - len(_live(self._drawing)))]
            return is_next and goes_on and not self._turns.someone_writes and self._draws(request)
        if request is other[0] and not (same and goes_on) and not _live(self._drawing):
            self._turns.write(lambda: self._switch(request.policy))
            if same or len(other) > 1:
                self.wake()
            return self._begins(request)
        return False

    def _switch(self, policy: str) -> None:
        self._term = _Term()
        self._put_in_force(policy)

    def _draws(self, request: Request) -> bool:
        """Take a place among those who draw, if there is one and the policy is still in force."""
        self._drawing.append(request)
        if _live(self._drawing).index(request) < self._at_once:
            drawing = Drawing(self._turns)
            drawing.__enter__()
            if self._in_force() == request.policy:
                request.drawing = drawing
                self._term.num_begun += 1
                forget(self._waiting, request)
                return True
            drawing.__exit__(None, None, None)
        forget(self._drawing, request)
        return False

    def _end_of_term(self, other: Request) -> float:
        """When the policy in force has to give way to another that is waited for; a picture of its own comes first."""
        return max(self._term.since, other.since) + self._patience if self._term.num_begun else float("inf")

    def _pause(self, request: Request) -> float:
        """How long to sleep: whoever is first of another policy wakes when its time comes, or is rung for after it."""
        waiting = _live(self._waiting)
        same, other = _parted(waiting, self._in_force())
        if other and other[0] is request:
            left = self._end_of_term(request) - time.monotonic()
            return min(_POLL, left) if left > 0 else _POLL
        return _POLL if request in same[: self._at_once] else _POLL * max(1, len(waiting) // 4)


def _parted(waiting: list[Request], policy: str) -> tuple[list[Request], list[Request]]:
    """Requests for a policy, and those for others."""
    same = [request for request in waiting if request.policy == policy]
    return same, [request for request in waiting if request.policy != policy]


def _live(queue: list[Request]) -> list[Request]:
    """Those that nobody gave up, in the order in which they came; forgets the others."""
    found = []
    for request in list(queue):
        if request.is_over:
            forget(queue, request)
        else:
            found.append(request)
    return found
