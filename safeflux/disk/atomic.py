"""Atomic writes: a file gets its name only once all of its bytes are on disk."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EINVAL}
"""Errors of file systems without hard links."""


def write_atomically(target: Path, data: bytes, *, overwrite: bool = True) -> None:
    """Write a file that gets its name only once all bytes are on disk; see `written_atomically`.

    Args:
        target: The file.
        data: Its content.
        overwrite: Replace a file of this name.

    Raises:
        FileExistsError: The target exists, and `overwrite` is False.
        OSError: The folder does not exist or cannot be written to, or the disk is full; an older file is unchanged.
    """
    with written_atomically(target, overwrite=overwrite) as file:
        file.write(data)


@contextmanager
def written_atomically(target: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Open a file that gets its name only once the block has ended and all bytes are on disk.

    On any failure nothing is left behind. A file that is replaced keeps its permissions; a new one gets the default
    ones of the process (umask).

    Args:
        target: The file.
        overwrite: Replace a file of this name.

    Yields:
        The file to write to.

    Raises:
        FileExistsError: The target exists, and `overwrite` is False.
        OSError: The folder does not exist or cannot be written to, or the disk is full; an older file is unchanged.
    """
    if target.exists() and not target.is_file():  # a device would be replaced by a file
        raise OSError(errno.EINVAL, "not a regular file", str(target))
    partial = target.parent / f".{target.name}.{secrets.token_hex(8)}.partial"
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666
    try:
        with open(partial, "xb", opener=lambda path, flags: os.open(path, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put(partial, target, overwrite)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def put(partial: Path, target: Path, overwrite: bool) -> None:
    """Rename a file or folder to its target; a folder never replaces anything.

    Raises:
        FileExistsError: The target exists, and `overwrite` is False or it is a folder.
    """
    is_folder = partial.is_dir()
    if overwrite and not is_folder:
        os.replace(partial, target)
    elif is_folder or not _has_linked(partial, target):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(partial, target)


def _has_linked(partial: Path, target: Path) -> bool:
    """Move a file by a hard link, which unlike a rename never replaces the target; False where there are no links."""
    try:
        os.link(partial, target)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    os.unlink(partial)
    return True
