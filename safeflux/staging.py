"""Large files and folders that take their name only once all of their bytes are on disk.

They are made in a hidden folder beside their place, which is locked while somebody works in it. A process that is
killed leaves that folder and nothing else; the next one that makes the same thing clears it away.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safeflux.errors import BakeError


@contextmanager
def staged(target: Path, num_bytes: int) -> Iterator[Path]:
    """Give a place to make a file or a folder in, and put it in the place of `target` at the end.

    Args:
        target: What is to be there in the end. A file that is there is replaced, a folder is not.
        num_bytes: Space that it will take.

    Yields:
        The path to write to, a file or a folder; on leaving it without an error, all of it is flushed to disk and
        renamed. After an error nothing of it is left, and `target` is as it was.

    Raises:
        BakeError: There is no room, the folder cannot be written to, or another process makes the same thing.
    """
    stage = target.parent / f".{target.name}.partial"
    try:
        with _locked(stage):
            _check_room(target, num_bytes)
            partial = stage / target.name
            yield partial
            _flush(partial)
            os.replace(partial, target)
            _sync(target.parent)
    except OSError as error:
        full = " Free some space, or choose another disk." if error.errno == errno.ENOSPC else ""
        raise BakeError(f"{target}: cannot be written ({error.strerror}); nothing was left behind.{full}") from error


@contextmanager
def _locked(stage: Path) -> Iterator[None]:
    """Make an empty folder that is ours alone; take it away at the end."""
    import fcntl  # of POSIX systems alone

    stage.mkdir(exist_ok=True)
    handle = os.open(stage, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BakeError(f"{stage}: another process works in it; wait, or choose another name") from error
        _clear(stage)  # what a killed process has left
        try:
            yield
        finally:
            _clear(stage)
            stage.rmdir()
    finally:
        os.close(handle)


def _clear(stage: Path) -> None:
    for left in stage.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def _check_room(target: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < num_bytes:
        raise BakeError(
            f"{target}: {num_bytes / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free. Free some space, or "
            "choose another disk."
        )


def _flush(path: Path) -> None:
    for each in (*path.rglob("*"), path) if path.is_dir() else (path,):
        _sync(each)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
