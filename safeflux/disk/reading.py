"""Safe reading: only regular files are opened, links in folders are followed, edits are noticed."""

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
    """Open a regular file for reading; a pipe, a device or a folder is an OSError at once, never a wait."""
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
    """Read a whole regular file of at most `max_bytes`; anything else is an OSError, and is not read."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EINVAL, f"it has {size} bytes, expected at most {max_bytes}", os.fspath(path))
        return file.read(max_bytes)


@dataclass(frozen=True)
class Tree:
    """The files of a folder, with links followed.

    Attributes:
        root: The folder.
        files: Every file by its path relative to the root, sorted; hidden ones only on request.
        leading_out: Links that point outside the root: relative path to real path.
    """

    root: Path
    files: tuple[Path, ...]
    leading_out: dict[Path, Path]


def look_through(root: Path, *, hidden: bool = False) -> Tree:
    """List a folder, and the folders that its links point to; `.git` is left out.

    Raises:
        ModelError: A link is broken or points to a folder that contains it, or an entry is not a file or a folder.
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
    """Return the state of a file, or of each file in a folder, which an edit would change.

    Raises:
        ModelError: As for `look_through`.
        OSError: A file is gone.
    """
    paths = [path / inside for inside in look_through(path).files] if path.is_dir() else [path]
    return {one: state_of(one) for one in paths}


def state_of(path: Path) -> FileState:
    """Return the state of a file, which an edit would change.

    Raises:
        OSError: The file is gone.
    """
    facts = path.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _walk(folder: Path, around: tuple[Path, ...], hidden: bool) -> Iterator[Path]:
    """Yield everything below a folder; `around` are the real paths of the folders that contain it."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    for path in entries:
        if path.name.startswith(".") and (not hidden or path.name == ".git"):
            continue
        if path.is_symlink() and not path.exists():
            raise ModelError(
                f"{path}: is a link to {os.readlink(path)}, which does not exist; download or copy the model again, or "
                "remove the link"
            )
        yield path
        if path.is_dir():
            real = path.resolve()
            if real in around:
                raise ModelError(f"{path}: is a link to a folder that contains it; remove the link")
            yield from _walk(path, (*around, real), hidden)
        elif not path.is_file():
            raise ModelError(f"{path}: expected a file or a folder, got a pipe, a device or a socket; remove it")
