"""Parts of a pipeline that hold no weights, and the pipeline itself: what tells each of them from another one.

A scheduler's shift, a tokenizer's normaliser, the factor between latents and pixels: nothing shows whether they are
right. So they are noted at the guard, and compared by `verify(deep=True)`. Not compared is what drawing writes, such
as a scheduler's steps.
"""

import dis
import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch

from safeflux.model.watch.settings import plain

Calls = tuple[type, Any, dict[str, Any]]
_LABELS = {"name_or_path", "verbose"}
"""Attributes that say where something came from, or how much it writes to the log."""
_BACKEND = ("normalizer", "pre_tokenizer", "post_processor")
_MODEL = ("dropout", "unk_token", "end_of_word_suffix", "byte_fallback", "ignore_merges")


def part_names(model: Any) -> list[str]:
    """Return what a pipeline consists of beside its transformer: its components, and what prepares its pictures."""
    if isinstance(model, torch.nn.Module):
        return []
    components = getattr(model, "components", {})
    helpers = [
        name
        for name, held in vars(model).items()
        if not name.startswith("_") and name not in components and isinstance(getattr(held, "config", None), Mapping)
    ]
    return [name for name in (*components, *helpers) if name != "transformer"]


def own_calls(part: Any) -> Calls:
    """The class of a pipeline or of a part of it, its call, and what is called in the place of its methods."""
    kind: Any = type(part)
    own = {name: held for name, held in vars(part).items() if callable(held) and callable(getattr(kind, name, None))}
    return kind, kind.__call__, own


def settings_of(part: Any) -> tuple[object, ...]:
    """What identifies a part that holds no weights: a scheduler may be made anew with the same settings."""
    if isinstance(part, torch.nn.Module) or not hasattr(part, "__dict__"):
        return (type(part),)
    kind, _, own = own_calls(part)
    config = getattr(part, "config", None)
    return (
        kind,
        own,
        _as_text(config) if isinstance(config, Mapping) else None,
        _attributes(part),
        tuple(_tokens(part)),
        settings_of(part.tokenizer) if hasattr(part, "tokenizer") else None,  # a processor around a tokenizer
    )


def attributes_of(model: Any) -> dict[str, object]:
    """Numbers and texts that a pipeline was made with; those of a picture begin with an underscore."""
    return {} if isinstance(model, torch.nn.Module) else dict(plain(vars(model)))


def _attributes(part: Any) -> dict[str, object]:
    kind: Any = type(part)
    moving = _LABELS | _moving(kind)
    # as text, so that NaN is equal to itself
    return {name: repr(value) for name, value in plain(vars(part), private=True) if name not in moving}


@cache
def _moving(kind: type) -> frozenset[str]:
    """The attributes that methods of a class write, apart from its constructor and those that set one (`set_shift`)."""
    written = set[str]()
    for name, method in ((name, held) for base in kind.__mro__ for name, held in vars(base).items()):
        sets = name.startswith("set_") and name not in ("set_timesteps", "set_begin_index")
        if isinstance(method, types.FunctionType) and not sets and name != "__init__":
            written |= {step.argval for step in dis.get_instructions(method) if step.opname == "STORE_ATTR"}
    return frozenset(written)


def _tokens(part: Any) -> Iterator[object]:
    """What a tokenizer makes of texts, so far as it can be told without its whole vocabulary."""
    if not hasattr(part, "get_added_vocab"):
        return
    yield from (len(part), dict(part.get_added_vocab()), repr(part.special_tokens_map))
    backend = getattr(part, "backend_tokenizer", None)
    for name in _BACKEND:
        held = getattr(backend, name, None)
        yield held if held is None else held.__getstate__()
    yield from (repr(getattr(getattr(backend, "model", None), name, None)) for name in _MODEL)


def _as_text(config: Mapping[str, Any]) -> dict[str, str]:
    """Settings without those of diffusers' own, such as versions; as text, since some are arrays."""
    return {key: repr(value) for key, value in config.items() if not key.startswith("_")}
