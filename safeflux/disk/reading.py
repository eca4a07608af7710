"""Files as they are found: regular ones alone are opened, links in folders are followed, edits are noticed."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from safeflux.errors import ModelError

FileState = tuple[int, int, int, int]
"""Device, inode, size in bytes, and time of the last change in ns."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file to be read; a pipe, a device or a folder is an OSError at once, and nothing waits for it."""
    return open(path, "rb", opener=only_regular)


def only_regular(path: str, flags: int) -> int:
    """Open a regular file, as the `opener` of `open`; a pipe, a device or a folder is an OSError."""
    # without O_NONBLOCK, which Windows lacks, opening a named pipe waits until somebody writes to it
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return handle


def read_regular(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Read a whole regular file of at most so many bytes; anything else is an OSError, and is not read."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EINVAL, f"it has {size} bytes, expected at most {max_bytes}", os.fspath(path))
        return file.read(max_bytes)


@dataclass(frozen=True)
class Tree:
    """What a folder holds, with links followed.

    Attributes:
        root: The folder.
        files: Every file by its path below the root, sorted; hidden ones only if they were asked for.
        leading_out: Links that lead out of the root, by their paths below it, and where they lead.
    """

    root: Path
    files: tuple[Path, ...]
    leading_out: dict[Path, Path]


def look_through(root: Path, *, hidden: bool = False) -> Tree:
    """List a folder, and the folders that links in it lead to; the history of Git does not count.

    Raises:
        ModelError: A link leads nowhere or back to a folder around it, or something is neither a file nor a folder.
    """
    files: list[Path] = []
    leading_out: dict[Path, Path] = {}
    for path in _walk(root, (root.resolve(),), hidden):
        inside = path.relative_to(root)
        if path.is_symlink() and not (real := path.resolve()).is_relative_to(root.resolve()):
            leading_out[inside] = real
        if not path.is_dir():
            files.append(inside)
    return Tree(root, tuple(sorted(files)), leading_out)


def states_of(path: Path) -> dict[Path, FileState]:
    """Return what would differ after an edit, for a file or for each file in a folder.

    Raises:
        ModelError: As for `look_through`.
        OSError: A file is gone.
    """
    paths = [path / inside for inside in look_through(path).files] if path.is_dir() else [path]
    return {one: state_of(one) for one in paths}


def state_of(path: Path) -> FileState:
    """Return what would differ after an edit of a file.

    Raises:
        OSError: The file is gone.
    """
    facts = path.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _walk(folder: Path, around: tuple[Path, ...], hidden: bool) -> Iterator[Path]:
    """Yield everything below a folder; `around` are the real folders that it lies in."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    for path in entries:
        if path.name.startswith(".") and (not hidden or path.name == ".git"):
            continue
        if path.is_symlink() and not path.exists():
            raise ModelError(
                f"{path}: is a link to {os.readlink(path)}, which is not there; download or copy the model again, or "
                "remove the link"
            )
        yield path
        if path.is_dir():
            real = path.resolve()
            if real in around:
                raise ModelError(f"{path}: is a link to a folder around it; remove the link")
            yield from _walk(path, (*around, real), hidden)
        elif not path.is_file():
            raise ModelError(f"{path}: expected a file or a folder, got a pipe, a device or a socket; remove it")
