"""The machine and its devices. torch and ONNX Runtime are only asked on request, in processes of their own.

So a torch that is broken, crashes on import or hangs becomes a message, and costs no time unless asked.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeflux.doctor.memory import main_memory

_ASK_TORCH = """
import json, torch

def entry(kind, index, name, memory):
    try:
        one = torch.ones(2, 2, device=f"{kind}:{index}" if kind != "cpu" else kind, dtype=torch.bfloat16)
        bf16 = bool(((one @ one) == 2).all())
    except (RuntimeError, TypeError):
        bf16 = False
    return {"kind": kind, "name": name, "memory": memory, "bf16": bf16}

found = [entry("cpu", 0, "", None)]
for kind in ("cuda", "xpu"):
    api = getattr(torch, kind, None)
    if api is not None and api.is_available():
        for index in range(api.device_count()):
            about = api.get_device_properties(index)
            found.append(entry(kind, index, about.name, about.total_memory))
if torch.backends.mps.is_available():
    found.append(entry("mps", 0, "", None))
print(json.dumps(found))
"""
_ASK_ONNXRUNTIME = "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"
_PATIENCE = 120
"""Seconds to wait for an import, which is slow from a cold disk."""


@dataclass(frozen=True)
class Machine:
    """Facts that are known without torch.

    Attributes:
        python: Version of Python.
        system: Operating system and processor.
        cores: Number of cores that this process may use.
        memory: Main memory in bytes; a container's limit counts.
        free: Free bytes on the disk of the given folder.
    """

    python: str
    system: str
    cores: int
    memory: int
    free: int


@dataclass(frozen=True)
class Answer:
    """The devices that a library sees; `fault` says why there is no answer."""

    value: list[Any]
    fault: str = ""


def look(folder: Path) -> Machine:
    """Inspect this machine, and the disk of a folder."""
    allowed = getattr(os, "sched_getaffinity", None)
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Machine(platform.python_version(), system, cores, main_memory().total, shutil.disk_usage(folder).free)


def ask_torch() -> Answer:
    """The devices that torch sees: kind, name, bytes of memory, and whether they multiply bfloat16."""
    return _ask(_ASK_TORCH)


def ask_onnxruntime() -> Answer:
    """The execution providers that ONNX Runtime was built with."""
    return _ask(_ASK_ONNXRUNTIME)


def _ask(code: str) -> Answer:
    try:
        # -P: do not import from the current folder.
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return Answer([], f"it did not answer within {_PATIENCE} seconds")
    if done.returncode < 0:
        return Answer([], f"it crashed the process (signal {-done.returncode})")
    if done.returncode:
        return Answer([], (done.stderr.strip().splitlines() or ["it gave no reason"])[-1])
    try:
        return Answer(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        return Answer([], "the process ended without an answer")
