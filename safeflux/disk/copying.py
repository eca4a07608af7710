"""Copying bytes from one file to another, with progress."""

import errno
import os
from collections.abc import Callable
from io import FileIO

from safeflux.errors import BakeError

Advance = Callable[[int], object]
"""Called with the number of bytes done since the last call."""
Progress = Callable[[str, int, int], object]
"""Called with the name of the work, the amount done, and the total."""
CHUNK = 1 << 23
"""Bytes that are held in memory, or passed to the system, at a time."""
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def copy_range(source: FileIO, target: FileIO, start: int, size: int, advance: Advance) -> None:
    """Copy a range of a file to the current position of another, in the kernel where possible; both are unbuffered.

    Raises:
        BakeError: The source is too short.
    """
    source.seek(start)
    left, copy = size, _in_kernel if hasattr(os, "copy_file_range") else _by_hand
    while left:
        try:
            done = copy(source, target, min(left, CHUNK))
        except OSError as error:
            if copy is _by_hand or error.errno not in _NO_KERNEL_COPY:
                raise
            copy = _by_hand
            continue
        if not done and copy is _in_kernel:  # some file systems return 0 before the end
            copy = _by_hand
            continue
        if not done:
            raise _cut_off(source)
        left -= done
        advance(done)


def read_into(source: FileIO, view: memoryview) -> None:
    """Fill a buffer from the current position of a file.

    Raises:
        BakeError: The file is too short.
    """
    while len(view):
        done = source.readinto(view)
        if not done:
            raise _cut_off(source)
        view = view[done:]


def write_all(target: FileIO, view: memoryview) -> None:
    """Write a whole buffer at the current position of a file."""
    while len(view):
        view = view[target.write(view) :]


def _cut_off(source: FileIO) -> BakeError:
    return BakeError(f"{source.name}: was truncated while it was read; copy the file again")


def _in_kernel(source: FileIO, target: FileIO, count: int) -> int:
    return os.copy_file_range(source.fileno(), target.fileno(), count)


def _by_hand(source: FileIO, target: FileIO, count: int) -> int:
    data = source.read(count)
    write_all(target, memoryview(data))
    return len(data)
