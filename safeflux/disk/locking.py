"""File locks, which POSIX systems have. On others the error comes where a lock is asked for, and not at import."""

import platform
from types import ModuleType

from safeflux.errors import SafeFluxError


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
