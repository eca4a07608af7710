"""Pipelines that are called with other arguments, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Called:
    """A pipeline behind a function of the prompts: what that returns is added to the arguments of the call."""

    def __init__(self, pipe: Any, more: Callable[[list[str]], dict[str, Any]]) -> None:
        self._pipe, self._more = pipe, more

    def __call__(self, *, prompt: list[str], **call: Any) -> Any:
        """Draw."""
        return self._pipe(**{"prompt": prompt, **call, **self._more(prompt)})


def called_with(more: Callable[[list[str]], dict[str, Any]]) -> Any:
    """For `Made.drawing`: every call with these arguments besides."""

    @contextmanager
    def drawing(pipe: Any) -> Iterator[Any]:
        yield Called(pipe, more)

    return drawing
