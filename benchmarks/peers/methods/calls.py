"""Pipelines that are called with other arguments, or not at all, or whose pictures are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from safeflux.reference.model import EMOJI_FLUX_CALL


@dataclass(frozen=True)
class Asked:
    """What a call of a pipeline asks for: prompts, or prompts that are encoded already."""

    pipe: Any
    call: dict[str, Any]

    @property
    def prompts(self) -> list[str]:
        """The prompts; empty where there are only encoded ones."""
        prompt = self.call.get("prompt") or []
        return [prompt] if isinstance(prompt, str) else list(prompt)

    @property
    def count(self) -> int:
        """The pictures that are asked for."""
        return len(self.prompts) or len(self.call["prompt_embeds"])

    @property
    def pooled(self) -> torch.Tensor:
        """Pooled vectors of the prompts, (B, P)."""
        if not self.prompts:
            given: torch.Tensor = self.call["pooled_prompt_embeds"]
            return given
        length = EMOJI_FLUX_CALL["max_sequence_length"]
        encoded: torch.Tensor = self.pipe.encode_prompt(self.prompts, None, max_sequence_length=length)[1]
        return encoded


class Behind:
    """A pipeline behind something that decides how it is called; all else of it is the pipeline's own."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def __getattr__(self, name: str) -> Any:
        """What is not its own."""
        return getattr(self._pipe, name)


class Called(Behind):
    """A pipeline behind a function of what is asked: what that returns is added to the arguments of the call."""

    def __init__(self, pipe: Any, more: Callable[[Asked], dict[str, Any]]) -> None:
        super().__init__(pipe)
        self._more = more

    def __call__(self, **call: Any) -> Any:
        """Draw."""
        return self._pipe(**{**call, **self._more(Asked(self._pipe, call))})


def called_with(more: Callable[[Asked], dict[str, Any]]) -> Any:
    """For `Made.drawing`: every call with these arguments besides."""

    @contextmanager
    def drawing(pipe: Any) -> Iterator[Any]:
        yield Called(pipe, more)

    return drawing


def blocked() -> Image.Image:
    """What stands in the place of a picture that is not shown."""
    return Image.new("RGB", (EMOJI_FLUX_CALL["width"], EMOJI_FLUX_CALL["height"]), "gray")
