"""File locks of POSIX systems. Elsewhere the error is raised when a lock is needed, not at import."""

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
