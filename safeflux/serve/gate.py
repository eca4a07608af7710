"""A bound on the requests inside a service, being drawn or waiting. Any more are rejected."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio
import anyio.to_thread

from safeflux.serve.problems import ProblemError

_T = TypeVar("_T")
_POLL = 0.5
"""Seconds between checks of whether a client is still connected."""


class Gate:
    """A bound on requests, and a thread for each of them."""

    def __init__(self, at_once: int, waiting: int) -> None:
        """Open the gate.

        Args:
            at_once: How many are drawn at the same time.
            waiting: How many may wait besides.
        """
        self._most = at_once + waiting
        self._threads = anyio.CapacityLimiter(self._most)
        self._seconds = 5.0
        self._at_once = at_once
        self.num_inside = 0
        """Requests being drawn or waiting."""
        self.num_refused = 0
        """Requests that were rejected."""

    @property
    def is_full(self) -> bool:
        """Whether the next request is rejected."""
        return self.num_inside >= self._most

    @contextmanager
    def _inside(self) -> Iterator[None]:
        if self.is_full:
            self.num_refused += 1
            wait = round(self._seconds * self._most / self._at_once / 2) or 1
            raise ProblemError(
                429,
                f"{self.num_inside} requests are in the queue; try again in {wait} s",
                code="queue_full",
                retry=wait,
            )
        self.num_inside += 1
        began = time.monotonic()
        try:
            yield
            taken = (time.monotonic() - began) * self._at_once / max(1, self.num_inside)
            self._seconds = 0.8 * self._seconds + 0.2 * taken  # about what a picture takes
        finally:
            self.num_inside -= 1

    async def run(self, body: Callable[[Callable[[], bool]], _T], is_gone: Callable[[], Awaitable[bool]]) -> _T:
        """Run a request in a thread.

        Args:
            body: The work; its argument tells whether the client has disconnected.
            is_gone: Whether the client has disconnected.

        Raises:
            ProblemError: 429 if too many are waiting.
        """
        with self._inside():
            gone = threading.Event()

            async def watch() -> None:
                while not gone.is_set():
                    await asyncio.sleep(_POLL)
                    if await is_gone():
                        gone.set()

            watching = asyncio.create_task(watch())
            try:
                return await anyio.to_thread.run_sync(body, gone.is_set, limiter=self._threads)
            finally:
                watching.cancel()
