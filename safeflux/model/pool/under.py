"""A turn to draw under one policy of a pool."""

from safeflux.model.handle import GuardHandle
from safeflux.model.pool.queue import Queue, Request
from safeflux.model.turn_lock import Turn


class Under(Turn):
    """A turn for one picture under one policy."""

    def __init__(self, queue: Queue, policy: str, timeout: float | None, handle: GuardHandle) -> None:
        """Queue nowhere yet."""
        self._queue, self._policy, self._timeout, self._handle = queue, policy, timeout, handle
        self._request: Request | None = None

    def __enter__(self) -> GuardHandle:
        """Wait for the policy's turn, and return the handle of what is in force."""
        try:
            self._request = Request(self._policy)
            self._queue.enter(self._request, self._timeout)
        except BaseException:
            self._end()
            raise
        return self._handle

    def _end(self) -> None:
        if self._request is not None:
            self._queue.leave(self._request)
            self._request = None  # only now: one that is not left yet has to be known
