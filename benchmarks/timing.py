"""What the benchmarks of time share: a call on the clock, and a report with what it ran on."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

import safeflux
from safeflux.atomic import write_atomically

_T = TypeVar("_T")


def timed(call: Callable[[], _T]) -> tuple[_T, float]:
    """What a call returns, and the milliseconds that it took."""
    began = time.perf_counter()
    value = call()
    return value, 1000 * (time.perf_counter() - began)


def milliseconds(call: Callable[[], Any]) -> float:
    """The milliseconds that a call took."""
    return timed(call)[1]


def write_report(path: Path | None, **told: Any) -> None:
    """Write figures as JSON, with versions and the machine; nothing without a path."""
    if path:
        ran_on = {"safeflux": safeflux.__version__, "torch": torch.__version__, "machine": platform.machine()}
        write_atomically(path, (json.dumps({**told, **ran_on}, indent=1) + "\n").encode())
