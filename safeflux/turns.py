"""Who may use a model when several threads do: many draw at once, and whoever writes to the weights waits for them.

The turns of a model live beside it, not in it, so that copies and pickles of the model have none.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch

from safeflux.errors import ApplyError


class Turns:
    """Turns on one model. A thread that draws may begin another drawing; it may not write before it is done."""

    def __init__(self) -> None:
        self._plan = threading.RLock()
        self._free = threading.Condition()
        self._drawing: Counter[int] = Counter()
        self._is_writing = False

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Use the weights as they are: nobody writes to them meanwhile."""
        me = threading.get_ident()
        with self._free:
            self._free.wait_for(lambda: not self._is_writing or self._drawing[me])
            self._drawing[me] += 1
        try:
            yield
        finally:
            with self._free:
                self._drawing[me] -= 1
                if not self._drawing[me]:
                    del self._drawing[me]
                self._free.notify_all()

    @contextmanager
    def planning(self) -> Iterator[None]:
        """Plan what to write: nobody else writes or plans meanwhile, so that it is still true then.

        Raises:
            ApplyError: This thread draws, and would wait for itself.
        """
        if self._drawing[threading.get_ident()]:
            raise ApplyError("this thread is drawing with the model; change the guard before or after")
        with self._plan:
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write to the weights: who draws is waited for, and who wants to waits.

        Raises:
            ApplyError: This thread draws, and would wait for itself.
        """
        with self.planning(), self._free:
            self._is_writing = True
            try:
                self._free.wait_for(lambda: not self._drawing)
                yield
            finally:
                self._is_writing = False
                self._free.notify_all()


_TURNS: WeakKeyDictionary[torch.nn.Module, Turns] = WeakKeyDictionary()
_MAKING = threading.Lock()


def turns_of(transformer: torch.nn.Module) -> Turns:
    """The turns of a model, the same for every guard of it."""
    with _MAKING:
        return _TURNS.setdefault(transformer, Turns())
