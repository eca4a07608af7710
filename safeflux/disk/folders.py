"""Whether a folder can be written to, asked before a long run instead of at its end."""

import os
from pathlib import Path

from safeflux.errors import ConfigError


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to. Makes nothing: a run that fails leaves nothing behind.

    Raises:
        ConfigError: The nearest part of the path that exists is no folder, or cannot be written to.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise ConfigError(f"{nearest} is not a folder that can be written to; choose another with --out")
