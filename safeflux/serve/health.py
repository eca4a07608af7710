"""The state of a service's guard, checked by a thread of its own, so that health checks never wait for a picture."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from safeflux.errors import SafeFluxError
from safeflux.model.pool.pool import PolicyPool
from safeflux.model.verify import Verification
from safeflux.plan.status import State


@dataclass(frozen=True)
class Look:
    """A result of `verify`, and its time (`time.monotonic`)."""

    found: Verification
    at: float


class Health:
    """The last look at a pool's guard."""

    def __init__(self, pool: PolicyPool, *, deep_seconds: float, is_full: Callable[[], bool]) -> None:
        """Check once.

        Args:
            pool: The guard.
            deep_seconds: How often all masked weights are read.
            is_full: Whether the queue is full.
        """
        self._pool, self._deep_seconds, self._is_full = pool, deep_seconds, is_full
        self._deep_at = time.monotonic()
        self.is_stopping = False
        """Set when the service stops accepting requests."""
        self.last = Look(pool.verify(), time.monotonic())

    def look(self) -> None:
        """Check the guard; this may wait for a policy change."""
        is_deep = time.monotonic() - self._deep_at >= self._deep_seconds
        try:
            found = self._pool.verify(deep=is_deep)
        except SafeFluxError as error:
            found = Verification(State.STALE, (str(error),), self.last.found.policy)
        if is_deep:
            self._deep_at = time.monotonic()
        self.last = Look(found, time.monotonic())

    @property
    def is_guarded(self) -> bool:
        """Whether the guard was in force at the last check."""
        return self.last.found.ok

    @property
    def is_ready(self) -> bool:
        """Whether a new request would be drawn."""
        return self.is_guarded and not self.is_stopping and not self._is_full()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = self.last.found
        return {
            "state": str(found.state),
            "policy": found.policy,
            "faults": list(found.faults),
            "seconds_ago": round(time.monotonic() - self.last.at, 1),
            "ready": self.is_ready,
        }
