"""Writing a file whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_atomically(target: Path, data: bytes) -> None:
    """Write bytes under a name that they take only once all are on disk; whatever stops it, no part is left behind.

    Raises:
        OSError: The folder is not there or cannot be written to, or the disk is full; an older file is as it was.
    """
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(partial, target)
    except BaseException:
        os.unlink(partial)
        raise
