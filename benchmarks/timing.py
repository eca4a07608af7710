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

UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16")
"""Units of processors that times depend on, as Linux calls them."""
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


def ran_on() -> dict[str, Any]:
    """The versions and the machine."""
    return {
        "safeflux": safeflux.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "processor": _processor(),
    }


def _processor() -> dict[str, Any]:
    """The processor's name and which of the units that matter here it has; empty where the system does not say."""
    info = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in info.read_text().splitlines()] if info.is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in lines}
    flags = facts.get("flags", facts.get("Features", "")).split()
    return {"name": facts.get("model name", ""), "flags": [name for name in UNITS if name in flags]}
