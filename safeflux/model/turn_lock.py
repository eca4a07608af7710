"""Who may use a model when several threads do: many draw at once, and whoever writes to the weights waits for them.

A turn is a ticket in a queue; appending it takes the turn, one assignment ends it, and no operating-system lock is
held. So an exception that comes at any moment (Ctrl-C, no memory) leaves nothing taken that nobody knows of. A ticket
whose thread has ended counts no longer. The turns of a model live beside it, not in it, so that copies and pickles of
the model have none.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch

from safeflux.errors import ApplyError

WAIT_LIMIT = 900.0
"""Seconds after which a wait for other threads ends in an error."""
_T = TypeVar("_T")
_TORN = (
    "this process was forked while another thread was writing to the weights, so that some are of the old policy and "
    "some of the new one; load the model again in this process, or fork before the model is swapped"
)


class Ticket:
    """One turn of one thread, waiting or under way, until `end`."""

    __slots__ = ("began", "thread", "what", "writes")

    def __init__(self, what: str, *, writes: bool = False) -> None:
        self.what = what
        self.writes = writes
        self.began = False
        """Whether its time has come."""
        self.thread: threading.Thread | None = threading.current_thread()

    def end(self) -> None:
        """Give the turn back; doing it twice does nothing more."""
        self.thread = None

    @property
    def is_mine(self) -> bool:
        """Whether this thread took it."""
        return self.thread is threading.current_thread()

    @property
    def is_torn(self) -> bool:
        """Whether its thread is gone in the midst of its writing: only a fork can do that."""
        thread = self.thread
        return self.writes and self.began and thread is not None and not _is_alive(thread)

    @property
    def is_over(self) -> bool:
        """Whether nobody has to wait for it."""
        thread = self.thread
        return thread is None or not (_is_alive(thread) or self.is_torn)


_Ticket = TypeVar("_Ticket", bound=Ticket)


def _is_alive(thread: threading.Thread) -> bool:
    # Not asked of the thread that runs this: a key press inside of `is_alive` marks a thread as ended (CPython 3.11).
    return thread is threading.current_thread() or thread.is_alive()


class Turn(ABC):
    """A turn as a context manager. One that is dropped ends, whatever happened to its `with`."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the turn back."""
        self._end()

    def __del__(self) -> None:
        """Give back a turn whose `with` was left without `__exit__`."""
        self._end()

    @abstractmethod
    def _end(self) -> None:
        """Give the turn back, if it was taken; doing it twice does nothing more."""


class Drawing(Turn):
    """A turn for drawing."""

    def __init__(self, turns: "Turns") -> None:
        """Take nothing yet."""
        self._turns = turns
        self._ticket: Ticket | None = None

    def __enter__(self) -> None:
        """Wait for whoever is writing.

        Raises:
            ApplyError: The wait takes too long, or the weights were torn by a fork.
        """
        try:
            self._ticket = Ticket("drawing")  # known here before it counts, so that it can be ended
            self._turns.queue(self._ticket)
            if self._turns.are_torn:
                raise ApplyError(_TORN)
            self._turns.wait(self._ticket)
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        if self._ticket is not None:
            self._ticket.end()


class Turns:
    """Turns on one model. A thread that draws may begin another drawing; it may not write before it is done."""

    def __init__(self) -> None:
        self._uses: list[Ticket] = []
        """Who draws and who writes, in the order in which they came."""
        self._plans: list[Ticket] = []

    @property
    def are_torn(self) -> bool:
        """Whether this process was forked in the midst of another thread's writing."""
        return any(ticket.is_torn for ticket in self._uses)

    @property
    def someone_writes(self) -> bool:
        """Whether a thread writes, or waits for it."""
        return any(ticket.writes and not ticket.is_over for ticket in list(self._uses))

    def drawing(self) -> Drawing:
        """Use the weights as they are, inside a `with`: nobody writes to them meanwhile."""
        return Drawing(self)

    def draw(self, body: Callable[[], _T]) -> _T:
        """Read the weights while nobody writes to them, and return what `body` returns."""
        return self._run(self._uses, Ticket("drawing"), body)

    def plan(self, body: Callable[[], _T]) -> _T:
        """Plan what to write: nobody else writes or plans meanwhile, so that it is still true then.

        Raises:
            ApplyError: This thread draws, and would wait for itself; or the wait takes too long.
        """
        if any(ticket.is_mine and not ticket.writes for ticket in list(self._uses)):
            raise ApplyError("this thread is drawing with the model; change the guard before or after")
        return self._run(self._plans, Ticket("planning"), body)

    def write(self, body: Callable[[], _T]) -> _T:
        """Write to the weights: who draws is waited for, and who wants to waits.

        Raises:
            ApplyError: This thread draws, and would wait for itself; the wait takes too long; or the weights were torn
                by a fork.
        """

        def write() -> _T:
            if self.are_torn:
                raise ApplyError(_TORN)
            return self._run(self._uses, Ticket("writing", writes=True), body)

        return self.plan(write)

    def queue(self, ticket: Ticket) -> None:
        """Queue for drawing."""
        self._uses.append(ticket)

    def wait(self, ticket: Ticket) -> None:
        """Return when a ticket of `ticket` has its turn.

        Raises:
            ApplyError: That takes longer than `WAIT_LIMIT`.
        """
        self._wait(self._uses, ticket)

    def _run(self, queue: list[Ticket], ticket: Ticket, body: Callable[[], _T]) -> _T:
        # Twice, so that an exception in the first `finally` cannot keep the ticket.
        try:
            try:
                queue.append(ticket)
                self._wait(queue, ticket)
                return body()
            finally:
                ticket.end()
        finally:
            ticket.end()

    def _wait(self, queue: list[Ticket], ticket: Ticket) -> None:
        began, pause = time.monotonic(), 0.0005
        while (holder := _blocked_by(queue, ticket)) is not None:
            if time.monotonic() - began > WAIT_LIMIT:
                thread = holder.thread
                raise ApplyError(
                    f"waited {WAIT_LIMIT:g} seconds for thread {thread.name if thread else '?'!r}, which is "
                    f"{holder.what} with this model and does not end; nothing was written"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        ticket.began = True


def _blocked_by(queue: list[Ticket], ticket: Ticket) -> Ticket | None:
    """The first ticket that has to end before this one's time comes; forgets those that have ended."""
    holder = None
    for other in list(queue):
        if other is ticket:
            break
        if other.is_over:
            forget(queue, other)
        elif other.is_mine:
            if not other.writes and not ticket.writes:
                return None  # who draws may draw once more, though a writer is waiting
        elif holder is None and not other.is_torn and (other.writes or ticket.writes or other.what == "planning"):
            holder = other
    return holder


def forget(queue: list[_Ticket], ticket: _Ticket) -> None:
    """Remove a ticket from a list that other threads may change meanwhile."""
    try:
        queue.remove(ticket)
    except ValueError:  # another thread was faster
        return


_TURNS: WeakKeyDictionary[torch.nn.Module, Turns] = WeakKeyDictionary()


def turns_of(transformer: torch.nn.Module) -> Turns:
    """The turns of a model, the same for every guard of it."""
    return _TURNS.setdefault(transformer, Turns())
