"""Large files and folders, made in a hidden folder beside their place and put there once all of them is on disk.

Each run makes a hidden folder of its own, `.NAME.XXXXXXXX.partial`, with a file in it that marks it as ours and is
locked while the run works. So no run touches what another one makes. A run that is killed leaves its folder; the next
one that makes the same thing clears it, if it has the mark and the lock of it can be had.
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
from safeflux.disk.locking import file_locks
from safeflux.errors import BakeError

_WORK, _MARK = "made", ".made-by-safeflux"
"""In a hidden folder: the place to work in, and the file that says that the folder is ours, and that is locked."""
_NO_LOCKS = {errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems without locks answer, such as some of NFS."""
_NO_SYNC = {errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems answer that cannot flush a folder, such as CIFS."""


@contextmanager
def staged(target: Path, num_bytes: int, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a place to make a file or a folder in, and put it in the place of `target` at the end.

    Args:
        target: The file or folder to be in the end.
        num_bytes: Space that it will take.
        overwrite: Replace a file of this name. Otherwise nothing that is there is replaced, even if it appears while
            this one is made.

    Yields:
        The path to write to, a file or a folder; on leaving it without an error, all of it is flushed to disk and
        renamed. After an error nothing of it is left, and `target` is as it was.

    Raises:
        BakeError: There is no room, the folder cannot be written to, another process makes the same thing, or `target`
            has appeared meanwhile.
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


def _make_stage(target: Path) -> tuple[Path, int]:
    """Make a folder that is ours alone; return it, and the open file whose lock says so."""
    while True:
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        try:
            handle = os.open(stage / _MARK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            continue  # between two lines another run took the empty folder for one that was left
        try:
            is_ours = _lock(handle) is not False and _is_there(stage / _MARK, handle)
        except BaseException:
            _remove(stage, handle)
            raise
        if is_ours:
            return stage, handle
        os.close(handle)  # it was cleared before it was locked


def _lock(handle: int) -> bool | None:
    """Lock an open file; False where another process has the lock, None where the file system has no locks."""
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


def _is_there(path: Path, handle: int) -> bool:
    """Whether a name still is that of an open file: whoever held the lock before may have removed it."""
    try:
        there, opened = os.stat(path, follow_symlinks=False), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


def _clear_left(target: Path) -> None:
    """Remove what killed runs have left.

    Raises:
        BakeError: Another process is making the same thing.
    """
    for stage in _stages(target):
        with suppress(OSError):
            stage.rmdir()  # a run that was killed before its mark
        try:
            handle = os.open(stage / _MARK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # gone, or not ours
        locked = _lock(handle)
        if locked and _is_there(stage / _MARK, handle):
            _remove(stage, handle)
            continue
        os.close(handle)
        if locked is False:
            raise BakeError(
                f"{target}: another process works in it ({stage}); wait until it is done, or choose another name"
            )


def _stages(target: Path) -> list[Path]:
    """The hidden folders of runs that make the same thing; links are none."""
    name = re.compile(re.escape(f".{target.name}.") + r"[a-z0-9_]{8}\.partial")
    found = [path for path in target.parent.iterdir() if name.fullmatch(path.name)]
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _remove(stage: Path, handle: int) -> None:
    """Remove a folder that is locked; the mark goes last, so that what a kill leaves of it is still ours."""
    shutil.rmtree(stage / _WORK, ignore_errors=True)
    with suppress(OSError):
        if not (stage / _WORK).exists():
            os.unlink(stage / _MARK)
    os.close(handle)  # before the folder: on NFS an open file that was removed stays in it under another name
    with suppress(OSError):
        stage.rmdir()


def _put(partial: Path, target: Path, overwrite: bool) -> None:
    is_folder = partial.is_dir()
    try:
        put(partial, target, overwrite)
    except FileExistsError as error:
        way_out = "choose another name" if is_folder else "choose another name, or overwrite it (--overwrite)"
        raise BakeError(f"{target}: has appeared while it was made, and was not replaced; {way_out}") from error


def _check_room(target: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < num_bytes:
        left = "".join(f" {stage} was left by another run, which may be dead." for stage in _stages(target))
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
