"""Arguments of a pipeline's call: those that no pipeline can draw with."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

COUNTS = ("height", "width", "num_inference_steps", "max_sequence_length")


def call_faults(call: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each argument that diffusers would fail at in the middle of a run, and its fault.

    Examples:
        >>> list(call_faults({"height": 64, "num_inference_steps": -1}))
        [('num_inference_steps', 'expected a whole number from 1, got -1')]
    """
    for key, value in call.items():
        if key in COUNTS and (type(value) is not int or value < 1):
            yield key, f"expected a whole number from 1, got {value!r}"
        elif isinstance(value, float) and not math.isfinite(value):
            yield key, f"expected a number, got {value!r}"
