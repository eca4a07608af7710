"""A check before a long run that its folder can be written to."""

import tempfile
from pathlib import Path

from safeflux.errors import ConfigError


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be created or written to, by a folder that is made there and removed again.

    Permissions alone do not tell: root may write anywhere, but not to `/proc`, nor where a disk is mounted read-only.

    Raises:
        ConfigError: The nearest existing part of the path is not a folder, or cannot be written to.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".safeflux-", dir=nearest):
            pass
    except OSError as error:
        raise ConfigError(
            f"{nearest} is not a folder that can be written to ({error.strerror}); choose another with --out"
        ) from error
