"""Writes that count by one assignment or not at all: an exception at any moment leaves the old state or the new one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from safeflux.errors import ApplyError

_ATTEMPTS = 3
"""How often going back is tried."""


@dataclass(frozen=True)
class Commit:
    """The one assignment by which writes count."""

    slots: dict[str, Any]
    """Where it is made: the attributes of an object (`vars`)."""
    name: str
    make: Callable[[], object]
    """Returns a new object to assign; called after the last write."""


def carry_out_(do: Callable[[], None], back: Callable[[], None], what: str, commit: Commit) -> None:
    """Write and commit; if anything stops it before that, a key press included, put everything back.

    Args:
        do: Writes.
        back: Puts back what was there, from wherever `do` stopped; it can be called again where it stopped itself.
        what: What is done, for errors.
        commit: What counts from its assignment on: what comes later changes nothing any more.

    Raises:
        ApplyError: It failed, and everything is as it was before.
    """
    made: object = None
    try:
        with torch.no_grad():
            do()
            made = commit.make()
            commit.slots[commit.name] = made
    except BaseException as error:
        if made is not None and commit.slots.get(commit.name) is made:
            raise
        _go_back(back, what, error)
        if not isinstance(error, Exception):
            raise
        raise ApplyError(f"{what} failed ({error}); every weight is as it was before") from error


def _go_back(back: Callable[[], None], what: str, error: BaseException) -> None:
    """Put everything back, again and again where a second key press stops it."""
    for attempt in reversed(range(_ATTEMPTS)):
        try:
            with torch.no_grad():
                return back()
        except BaseException as second:
            if not attempt:
                raise ApplyError(
                    f"{what} failed ({error}), and going back failed too ({second}): this model is damaged, load it "
                    "again"
                ) from second
