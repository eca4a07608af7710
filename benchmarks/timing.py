"""Shared by the benchmarks of time: a timed call, and a report with the machine and versions that it ran on."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

import safeflux
from safeflux.disk.atomic import write_atomically

_T = TypeVar("_T")


def timed(call: Callable[[], _T]) -> tuple[_T, float]:
    """The result of a call, and the milliseconds that it took."""
    began = time.perf_counter()
    value = call()
    return value, 1000 * (time.perf_counter() - began)


def milliseconds(call: Callable[[], Any]) -> float:
    """The milliseconds that a call took."""
    return timed(call)[1]


def write_report(path: Path | None, **facts: Any) -> None:
    """Write figures as JSON, with versions and the machine; nothing without a path."""
    if path:
        write_atomically(path, (json.dumps({**facts, **ran_on()}, indent=1) + "\n").encode())


def ran_on() -> dict[str, str]:
    """The versions and the machine."""
    return {"safeflux": safeflux.__version__, "torch": torch.__version__, "machine": platform.machine()}
