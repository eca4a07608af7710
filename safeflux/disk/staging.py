"""Large files and folders, built in a hidden folder beside their target and renamed once all of it is on disk.

Each run creates its own hidden folder, `.NAME.XXXXXXXX.partial`, with a file in it that marks it as ours and is
locked during the run. So no run touches the files of another. A killed run leaves its folder; the next run with the
same target removes it, if it has the mark and the lock is free.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safeflux.disk.atomic import put
from safeflux.disk.locking import try_lock
from safeflux.errors import BakeError

_WORK, _MARK = "made", ".made-by-safeflux"
"""In a hidden folder: the folder to work in, and the locked file that marks the folder as ours."""
_NO_SYNC = {errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP}
"""Errors of file systems that cannot flush a folder, such as CIFS."""


@contextmanager
def staged(target: Path, num_bytes: int, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path to build a file or a folder at, and rename it to `target` at the end.

    Args:
        target: The final path of the file or folder.
        num_bytes: Space that it will take.
        overwrite: Replace a file of this name. Otherwise nothing is replaced, even if it appears in the meantime.

    Yields:
        The path to write to, a file or a folder; after the block it is flushed to disk and renamed. After an error
        nothing of it is left, and `target` is unchanged.

    Raises:
        BakeError: There is no room, the folder cannot be written to, another process writes the same target, or
            `target` has appeared in the meantime.
    """
    stage = None
    try:
        _clear_left(target)
        _check_room(target, num_bytes)
        stage, handle = _make_stage(target)
        try:
            partial = stage / _WORK / target.name
            partial.parent.mkdir()
            yield partial
            _flush(partial)
            _put(partial, target, overwrite)
            _sync(target.parent)
        finally:
            _remove(stage, handle)
    except OSError as error:
        full = " Free some space, or choose another disk." if error.errno == errno.ENOSPC else ""
        left = f"{stage} was left behind" if stage and os.path.lexists(stage) else "nothing was left behind"
        raise BakeError(f"{target}: cannot be written ({error.strerror}); {left}.{full}") from error


def check_new(folder: Path) -> None:
    """Refuse a folder that cannot be staged, before the work that fills it.

    Raises:
        BakeError: Something has its name, or the folder that it would be in does not exist.
    """
    if os.path.lexists(folder):
        raise BakeError(f"{folder}: already exists; choose another name")
    if not folder.absolute().parent.is_dir():
        raise BakeError(f"{folder}: the folder {folder.parent} does not exist; create it first")


def _make_stage(target: Path) -> tuple[Path, int]:
    """Create a folder for this run alone; return it, and the open file whose lock says so."""
    while True:
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        try:
            handle = os.open(stage / _MARK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            continue  # in between, another run took the empty folder for a leftover
        try:
            is_ours = try_lock(handle) is not False and _is_there(stage / _MARK, handle)
        except BaseException:
            _remove(stage, handle)
            raise
        if is_ours:
            return stage, handle
        os.close(handle)  # it was cleared before it was locked


def _is_there(path: Path, handle: int) -> bool:
    """Whether a path still is an open file: the previous holder of the lock may have removed it."""
    try:
        there, opened = os.stat(path, follow_symlinks=False), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


def _clear_left(target: Path) -> None:
    """Remove the folders of killed runs.

    Raises:
        BakeError: Another process is writing the same target.
    """
    for stage in _stages(target):
        with suppress(OSError):
            stage.rmdir()  # empty: the run was killed before it wrote its mark
        try:
            handle = os.open(stage / _MARK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # gone, or not ours
        locked = try_lock(handle)
        if locked and _is_there(stage / _MARK, handle):
            _remove(stage, handle)
            continue
        os.close(handle)
        if locked is False:
            raise BakeError(
                f"{target}: another process is writing it ({stage}); wait until it is done, or choose another name"
            )


def _stages(target: Path) -> list[Path]:
    """The hidden folders of runs with the same target; links do not count."""
    name = re.compile(re.escape(f".{target.name}.") + r"[a-z0-9_]{8}\.partial")
    found = [path for path in target.parent.iterdir() if name.fullmatch(path.name)]
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _remove(stage: Path, handle: int) -> None:
    """Remove a locked folder; the mark goes last, so that whatever a kill leaves is still recognised as ours."""
    shutil.rmtree(stage / _WORK, ignore_errors=True)
    with suppress(OSError):
        if not (stage / _WORK).exists():
            os.unlink(stage / _MARK)
    os.close(handle)  # before the folder: NFS keeps a removed file in it under another name while it is open
    with suppress(OSError):
        stage.rmdir()


def _put(partial: Path, target: Path, overwrite: bool) -> None:
    is_folder = partial.is_dir()
    try:
        put(partial, target, overwrite)
    except FileExistsError as error:
        way_out = "choose another name" if is_folder else "choose another name, or overwrite it (--overwrite)"
        raise BakeError(
            f"{target}: was created by another process meanwhile, and was not replaced; {way_out}"
        ) from error


def _check_room(target: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < num_bytes:
        left = "".join(f" {stage} is left over from another run, which may be dead." for stage in _stages(target))
        raise BakeError(
            f"{target}: {num_bytes / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free. Free some space, or "
            f"choose another disk.{left}"
        )


def _flush(path: Path) -> None:
    for each in (*path.rglob("*"), path) if path.is_dir() else (path,):
        _sync(each)


def _sync(path: Path) -> None:
    is_folder = path.is_dir()
    handle = os.open(path, os.O_RDONLY if is_folder or not os.access(path, os.W_OK) else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (is_folder and error.errno in _NO_SYNC):
            raise
    finally:
        os.close(handle)
