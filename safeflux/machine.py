"""What this machine has and can do. torch and ONNX Runtime are asked in processes of their own, if they are asked.

So a torch that is broken, that crashes on import or that hangs, is told in words, and slows nothing that did not ask.
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
"""Seconds to wait for an import: a cold disk is slow."""


@dataclass(frozen=True)
class Machine:
    """What can be told without importing anything.

    Attributes:
        python: Version of Python.
        system: Operating system and processor.
        cores: That this process may use.
        memory: Bytes in all, as far as the control group allows; None where it cannot be told.
        free: Bytes free on the disk of the folder that was asked about.
    """

    python: str
    system: str
    cores: int
    memory: int | None
    free: int


@dataclass(frozen=True)
class Answer:
    """What a library says of the devices that it sees; `fault` tells in words why it says nothing."""

    value: list[Any]
    fault: str = ""


def look(folder: Path) -> Machine:
    """Look at this machine, and at the disk of a folder."""
    allowed = getattr(os, "sched_getaffinity", None)
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Machine(platform.python_version(), system, cores, _memory(), shutil.disk_usage(folder).free)


def ask_torch() -> Answer:
    """The devices that torch sees: kind, name, bytes of memory, and whether they multiply bfloat16."""
    return _ask(_ASK_TORCH)


def ask_onnxruntime() -> Answer:
    """The execution providers that ONNX Runtime was built with."""
    return _ask(_ASK_ONNXRUNTIME)


def _memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int | None:
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no such thing
        return None
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(whole, int(text)) if text.isdigit() else whole


def _ask(code: str) -> Answer:
    try:
        # -P: what lies in the current folder is no library.
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
        return Answer([], "it ended the process without an answer")
