"""File locks of POSIX systems. Elsewhere the error is raised when a lock is needed, not at import."""

import errno
import platform
from types import ModuleType

from safeflux.errors import SafeFluxError

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
