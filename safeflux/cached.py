"""Values that are computed once for an object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

_T = TypeVar("_T")


class cached_property(Generic[_T]):  # noqa: N801  a decorator, spelt as Python spells its own
    """As `functools.cached_property`, without its lock.

    Before Python 3.12 that lock is one for all objects, and a key press between taking it and entering its `with` keeps
    it for ever: every other thread then hangs. Here two threads may both compute the value, which does no harm.
    """

    def __init__(self, compute: Callable[[Any], _T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        """Know the attribute's name."""
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> cached_property[_T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> _T: ...
    def __get__(self, instance: object | None, owner: type) -> cached_property[_T] | _T:
        """Compute the value, and keep it where the attribute is looked for first."""
        if instance is None:
            return self
        value = self._compute(instance)
        vars(instance)[self._name] = value
        return value
