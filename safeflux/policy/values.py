"""Single values in YAML: what a plain one in a file stands for, and what options of the command line take."""

import math
import re
from typing import Any

import yaml

from safeflux.errors import ConfigError

_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def read_value(text: str, where: str) -> Any:
    """The value that a text stands for: `20`, `true`, `[a, b]`; any other text is itself.

    Args:
        text: What was given.
        where: The option, for errors.

    Raises:
        ConfigError: It is not YAML, such as a bracket that nothing closes.

    Examples:
        >>> read_value("20", "--set batch"), read_value("[ff, mlp]", "--set kinds")
        (20, ['ff', 'mlp'])
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        why = getattr(error, "problem", None) or error
        raise ConfigError(
            f"{where}: expected a value as in YAML (20, true, text, [a, b]), got {text!r} ({why})"
        ) from error


def finite(text: str) -> float:
    """A number from a text.

    Raises:
        ValueError: It is none, or not finite.

    Example:
        >>> finite("0.5")
        0.5
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {text!r}")
    return value


def resolve(text: str) -> Any:
    """A plain scalar's value by YAML 1.2's core schema: null, true, false, numbers, else text.

    Example:
        >>> resolve("0.05"), resolve("null"), resolve("no")
        (0.05, None, 'no')
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if len(text) <= 64 and _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text
