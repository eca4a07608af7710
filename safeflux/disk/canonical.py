"""Strict reading and canonical writing of JSON. Every JSON text from outside goes through this reader."""

import json
import re
from pathlib import Path
from typing import Any

from safeflux.disk.reading import read_regular
from safeflux.errors import ModelError

MAX_DEPTH = 64
"""Nesting of objects and lists; files of safeflux and diffusers have less than ten levels."""
MAX_BYTES = 1 << 26
"""Largest JSON file; the index of the largest sharded model takes less than one hundredth."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def canonical_json(value: Any) -> str:
    """Return the canonical JSON text of a value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_json(text: str | bytes) -> Any:
    """Read JSON in UTF-8; refuse what other readers would read differently or what could not be written back.

    Raises:
        ValueError: The text is not JSON; or a key appears twice, a number is not finite, a string is not Unicode, or
            values are nested more than `MAX_DEPTH` levels deep.

    Example:
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: key 'a' appears twice
    """
    text = text if isinstance(text, str) else text.decode("utf-8")
    try:
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise _too_deep() from error
    _check_depth(value)
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate is not a character, and cannot be printed
    return value


def parse_mapping(text: str | bytes) -> dict[str, Any]:
    """Read a JSON object, as `parse_json` does.

    Raises:
        ValueError: It is not JSON by these rules, or not an object.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {type(value).__name__}")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        ModelError: It cannot be read, or holds something else.
    """
    try:
        return parse_mapping(read_regular(path, MAX_BYTES))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); copy the model again") from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; a repeated key is a ValueError, since readers disagree on which one counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"number {text[:40]} is too large")
    return value


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inside = (inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer))
        level = [inner for inner in inside if isinstance(inner, dict | list)]
    if level:
        raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"values are nested more than {MAX_DEPTH} levels deep")
