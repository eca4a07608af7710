"""Bytes of one file into another, with a word on how far it is."""

import errno
import os
from collections.abc import Callable
from io import FileIO

from safeflux.errors import BakeError

Tell = Callable[[int], object]
"""Takes the number of bytes that were done since it was last called."""
Progress = Callable[[str, int, int], object]
"""Takes what is being done, how much of it is done, and how much there is."""
CHUNK = 1 << 23
"""Bytes that are held, or handed to the system, at a time."""
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def copy_range(source: FileIO, target: FileIO, start: int, size: int, tell: Tell) -> None:
    """Copy some bytes of a file to where another file stands; both are unbuffered. In the kernel where it can.

    Raises:
        BakeError: The source ends before.
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
        if not done and copy is _in_kernel:  # some file systems answer this where there is more
            copy = _by_hand
            continue
        if not done:
            raise _cut_off(source)
        left -= done
        tell(done)


def read_into(source: FileIO, view: memoryview) -> None:
    """Fill a buffer from where a file stands.

    Raises:
        BakeError: The file ends before.
    """
    while len(view):
        done = source.readinto(view)
        if not done:
            raise _cut_off(source)
        view = view[done:]


def write_all(target: FileIO, view: memoryview) -> None:
    """Write a buffer to where a file stands."""
    while len(view):
        view = view[target.write(view) :]


def _cut_off(source: FileIO) -> BakeError:
    return BakeError(f"{source.name}: became shorter while it was read; copy the file again")


def _in_kernel(source: FileIO, target: FileIO, count: int) -> int:
    return os.copy_file_range(source.fileno(), target.fileno(), count)


def _by_hand(source: FileIO, target: FileIO, count: int) -> int:
    data = source.read(count)
    write_all(target, memoryview(data))
    return len(data)
