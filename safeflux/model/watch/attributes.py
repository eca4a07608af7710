"""Whether some objects and dictionaries still hold the very same things."""

import gc
import importlib
from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

Dict = dict[str, Any]
_ORDER = attrgetter("__mro__")


def _always_another(_: Dict) -> object:
    return object()


_guards = importlib.import_module("torch._C._dynamo.guards")
_version: Callable[[Dict], object] = getattr(_guards, "dict_version", _always_another)
"""A number of a dictionary's own, and another one after each change. Torch checks by it whether graphs still fit."""


class Contents:
    """What dictionaries hold. One that was changed and changed back is the same: then every item is compared."""

    def __init__(self, dicts: Sequence[Dict]) -> None:
        """Note keys and values, which are held from now on."""
        self._dicts = dicts
        self._versions = list(map(_version, dicts))
        self._items = self._read()

    def are_unchanged(self) -> bool:
        """Whether they hold the same objects by the same names."""
        versions = list(map(_version, self._dicts))
        if versions != self._versions:
            if not are_same(self._read(), self._items):
                return False
            self._versions = versions
        return True

    def _read(self) -> list[object]:
        # `dict.keys` itself, which no class below it can replace
        keys, values = (
            chain.from_iterable(map(dict.keys, self._dicts)),
            chain.from_iterable(map(dict.values, self._dicts)),
        )
        return [*map(len, self._dicts), *keys, *values]


class Holders:
    """The classes of objects, and the dictionaries in which their attributes lie."""

    def __init__(self, objects: Sequence[object]) -> None:
        """Note them, which are held from now on.

        Args:
            objects: Each has a dictionary.
        """
        self._objects = objects
        for each in objects:
            vars(each)  # Python makes some dictionaries only when somebody asks for them
        self._held = gc.get_referents(*objects)

    def are_unchanged(self) -> bool:
        """Whether these are the same."""
        return are_same(gc.get_referents(*self._objects), self._held)


class Classes:
    """What some classes inherit, and the dictionaries in which their methods lie."""

    def __init__(self, kinds: Sequence[type]) -> None:
        """Note them, which are held from now on."""
        self._kinds = kinds
        self._orders = list(map(_ORDER, kinds))
        # The first dictionary that a class refers to. What is built into Python has none, and cannot be changed.
        dicts = (next((held for held in gc.get_referents(kind) if type(held) is dict), None) for kind in kinds)
        self.dicts: list[Dict] = [held for held in dicts if held is not None]

    def inherit_the_same(self) -> bool:
        """Whether each has the same bases."""
        return are_same(list(map(_ORDER, self._kinds)), self._orders)


def are_same(now: Sequence[object], then: Sequence[object]) -> bool:
    """Whether two rows consist of the same objects; what is equal is not the same, and `==` may say anything."""
    return len(now) == len(then) and all(map(is_, now, then))
