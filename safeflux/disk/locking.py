"""File locks of POSIX systems. Elsewhere the error is raised when a lock is needed, not at import."""

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from safeflux.errors import ConfigError, SafeFluxError

_LOCK = ".lock"
_NO_LOCKS = {errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of file systems without locks, such as some of NFS."""


def file_locks() -> ModuleType:
    """Return the standard module `fcntl`.

    Raises:
        SafeFluxError: This system has none.
    """
    try:
        import fcntl
    except ImportError as error:
        raise SafeFluxError(
            f"this needs the file locks of Linux or macOS, which {platform.system()} does not have; on Windows, run "
            "safeflux inside WSL"
        ) from error
    return fcntl


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is created if needed.

    On a file system without locks, every process gets it.

    Raises:
        ConfigError: Another process holds it.
        OSError: It cannot be created or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if try_lock(handle) is False:
            raise ConfigError(f"{folder}: another process is using it; wait for it to finish, or choose another folder")
        yield
    finally:
        os.close(handle)


def check_unlocked(folder: Path) -> None:
    """Refuse a folder whose lock another process holds, before a long preparation. Creates nothing.

    Raises:
        ConfigError: Another process holds it.
    """
    if (folder / _LOCK).exists():
        with locked(folder):
            pass


def try_lock(handle: int) -> bool | None:
    """Lock an open file, until it is closed or the process ends.

    Returns:
        False if another process has the lock, None if the file system has no locks.

    Raises:
        OSError: Anything else.
    """
    fcntl = file_locks()
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
