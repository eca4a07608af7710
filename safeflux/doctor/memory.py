"""Main memory of the machine, within the limits of this process' control groups: those of a container, for one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class MainMemory:
    """Bytes that a process may use.

    Attributes:
        total: In all.
        free: That can still be taken; what the system keeps as a cache and gives back counts as free.
    """

    total: int
    free: int


@dataclass(frozen=True)
class _Files:
    """The names under which a version of control groups gives its figures."""

    limit: str
    used: str
    cache: str


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def main_memory(root: Path = Path("/")) -> MainMemory:
    """Read how much memory there is, and how much of it is free.

    Args:
        root: Where `proc` and `sys` are.
    """
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for folder, files in _groups(root):
        limit = _number(folder / files.limit)
        if limit is not None:
            used = (_number(folder / files.used) or 0) - _cache(folder, files.cache)
            total, free = min(total, limit), min(free, max(0, limit - used))
    return MainMemory(total, free)


def _groups(root: Path) -> Iterator[tuple[Path, _Files]]:
    """The control groups of this process and those around them: each may set a limit."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, files = root / "sys/fs/cgroup", _V2
        elif "memory" in controllers.split(","):
            top, files = root / "sys/fs/cgroup/memory", _V1
        else:
            continue
        # Inside a container the path may be the host's, and only the top is there.
        own = top / path.strip("/")
        yield from ((folder, files) for folder in (own, *own.parents) if folder.is_relative_to(top))


def _cache(folder: Path, name: str) -> int:
    """File contents in memory that are given back when a group needs room."""
    for line in _text(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = _text(path).strip()  # `max` where there is no limit
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
