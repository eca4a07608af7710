"""How pictures are made ready for a classifier of one's own, and how its outputs are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from safeflux.detectors.base import Activation
from safeflux.errors import ConfigError
from safeflux.policy.values import finite


@dataclass(frozen=True)
class Preprocessing:
    """How pictures are made ready for a classifier of one's own, and how its outputs are read.

    Attributes:
        size: Height and width in pixels, where the ONNX file leaves them free.
        mean: Of each colour, taken off the pixels in [0, 1]; R, G, B.
        std: Of each colour, that they are then divided by.
        activation: Turns the outputs into scores.
        threshold: A label is found where its score is above this.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    activation: Activation = "none"
    threshold: float = 0.5


def make_preprocessing(settings: Mapping[str, str]) -> Preprocessing:
    """Preprocessing from texts, as a command line has them: numbers with commas between, e.g. `size` `224,224`.

    Raises:
        ConfigError: An unknown key, or a value that its key does not take.

    Examples:
        >>> make_preprocessing({"size": "224,224", "activation": "softmax"}).size
        (224, 224)
    """
    values: dict[str, Any] = {}
    for key, text in settings.items():
        if key not in _SETTINGS:
            raise ConfigError(f"preprocessing {key!r}: expected one of {', '.join(_SETTINGS)}")
        try:
            values[key] = _SETTINGS[key](text)
        except ValueError as error:
            raise ConfigError(f"preprocessing {key}={text}: {error}") from error
    return Preprocessing(**values)


def _numbers(text: str, count: int, least: float) -> tuple[float, ...]:
    values = tuple(finite(part) for part in text.split(","))
    if len(values) != count or min(values) < least:
        raise ValueError(f"expected {count} numbers with commas between, none below {least:g}")
    return values


def _size(text: str) -> tuple[int, ...]:
    return tuple(int(value) for value in _numbers(text, 2, 1))


def _activation(text: str) -> str:
    if text not in get_args(Activation):
        raise ValueError(f"expected one of {', '.join(get_args(Activation))}")
    return text


_SETTINGS: dict[str, Callable[[str], Any]] = {
    "size": _size,
    "mean": lambda text: _numbers(text, 3, 0),
    "std": lambda text: _numbers(text, 3, 1e-6),
    "activation": _activation,
    "threshold": finite,
}
