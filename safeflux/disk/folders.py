"""A check before a long run that its folder can be written to."""

import os
from pathlib import Path

from safeflux.errors import ConfigError


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be created or written to. Creates nothing, so a failed run leaves nothing behind.

    Raises:
        ConfigError: The nearest existing part of the path is not a folder, or cannot be written to.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise ConfigError(f"{nearest} is not a folder that can be written to; choose another with --out")
