"""Staging: whatever happens, a name is taken by whole files alone, and nobody else's files are touched."""

import errno
import os
import re
import subprocess
import sys
import textwrap

import pytest

from safeflux.disk import staging
from safeflux.disk.atomic import write_atomically
from safeflux.disk.staging import staged
from safeflux.errors import BakeError
from tests.helpers.compiler import COMPILER, HAS_COMPILER


def make(target, content=b"new", meanwhile=lambda: None, **options):
    """Make a file, or a folder where there is no content."""
    with staged(target, 10, **options) as partial:
        partial.mkdir() if content is None else partial.write_bytes(content)
        meanwhile()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["link", "folder", "file", "marked by name alone"])
def test_what_is_not_ours_is_never_cleared(tmp_path, kind):
    """Whatever stands at a hidden name beside the target: a link to a folder, somebody's folder, a file."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    for name in (".guarded.partial", ".guarded.abcd1234.partial"):
        place = tmp_path / name
        if kind == "link":
            place.symlink_to(theirs)
        elif kind == "file":
            place.write_text("mine")
        else:
            place.mkdir()
            (place / "thesis.tex").write_text("years of work")
            if kind != "folder":
                (place / "made").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    make(tmp_path / "guarded")
    assert (tmp_path / "guarded").read_bytes() == b"new"
    assert {path: path.read_bytes() for path in before} == before


def test_a_mark_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "other").write_text("x")
    stage = tmp_path / ".guarded.abcd1234.partial"
    (stage / "made").mkdir(parents=True)
    (stage / ".made-by-safeflux").symlink_to(tmp_path / "other")
    (stage / "made" / "file").write_text("mine")
    make(tmp_path / "guarded")
    assert (stage / "made" / "file").read_text() == "mine"


def killed(target):
    """Leave what a run leaves that is killed while it writes."""
    code = f"""
        import os
        from pathlib import Path
        from safeflux.disk.staging import staged
        with staged(Path({str(target)!r}), 10) as partial:
            partial.write_bytes(b"half")
            os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -9
    return [path for path in target.parent.iterdir() if path.name.startswith(f".{target.name}.")]


def test_what_a_killed_run_left_is_cleared_by_the_next_of_the_same_name_alone(tmp_path):
    (left,) = killed(tmp_path / "guarded")
    (other,) = killed(tmp_path / "guarded2")
    make(tmp_path / "guarded")
    assert not left.exists()
    assert other.exists()
    assert names(tmp_path) == sorted([other.name, "guarded"])


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "guarded"
    with pytest.raises(BakeError, match="was created by another process meanwhile, and was not replaced"):
        make(target, meanwhile=lambda: target.write_bytes(b"theirs"))
    assert target.read_bytes() == b"theirs"
    make(target, overwrite=True)
    assert target.read_bytes() == b"new"
    with pytest.raises(BakeError, match="was created by another process meanwhile"):
        make(tmp_path / "folder", None, meanwhile=(tmp_path / "folder").mkdir)
    assert names(tmp_path) == ["folder", "guarded"]


def test_without_hard_links_a_file_is_renamed_and_still_not_replaced(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    make(tmp_path / "guarded")
    assert (tmp_path / "guarded").read_bytes() == b"new"
    with pytest.raises(BakeError, match="was created by another process meanwhile"):
        make(tmp_path / "guarded")


def test_a_stage_that_was_removed_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    """Another run may take a fresh stage for one that was left: the inode under the lock is compared."""
    lock, removed = staging._lock, []

    def remove_first(handle):
        stages = list(tmp_path.glob(".guarded.*.partial"))
        if not removed:
            (stages[0] / ".made-by-safeflux").unlink()
            stages[0].rmdir()
            removed.append(stages[0])
        return lock(handle)

    monkeypatch.setattr(staging, "_lock", remove_first)
    make(tmp_path / "guarded")
    assert removed
    assert names(tmp_path) == ["guarded"]


def fail():
    raise OSError(errno.EIO, "Input/output error")


def test_what_is_left_behind_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(staging.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(BakeError) as caught:
        make(tmp_path / "guarded", meanwhile=fail)
    (left,) = tmp_path.iterdir()
    assert f"{left} was left behind" in str(caught.value)
    assert "nothing was left" not in str(caught.value)


SHIM = """
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <dlfcn.h>
extern "C" int flock(int fd, int operation) {
    const char *how = getenv("SHIM");
    if (how && how[0] == 'n') { errno = ENOLCK; return -1; }
    if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY) { errno = EBADF; return -1; }
    auto real = (int (*)(int, int)) dlsym(RTLD_NEXT, "flock");
    return real(fd, operation);
}
extern "C" int fsync(int fd) {
    struct stat facts;
    if (!fstat(fd, &facts) && S_ISDIR(facts.st_mode)) { errno = EINVAL; return -1; }
    auto real = (int (*)(int)) dlsym(RTLD_NEXT, "fsync");
    return real(fd);
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """A library that makes flock and fsync answer as NFS and CIFS do."""
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.cpp").write_text(SHIM)
    library = folder / "shim.so"
    command = [COMPILER, "-shared", "-fPIC", "-o", library, folder / "shim.cpp", "-ldl"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr
    return library


TRY = """
import os, sys
from pathlib import Path
from safeflux.disk.staging import staged
from safeflux.errors import BakeError
target = Path(sys.argv[1])
def make(inner=lambda: None):
    with staged(target, 10, overwrite=True) as partial:
        partial.write_bytes(b"new")
        inner()
def again():
    try:
        make()
        print("made twice")
    except BakeError as error:
        print("refused")
make(again)
child = os.fork()
if not child:
    make(lambda: os.kill(os.getpid(), 9))
os.waitpid(child, 0)
make()
print(*sorted(path.name[:9] for path in target.parent.iterdir()))
"""


@pytest.mark.skipif(not HAS_COMPILER or sys.platform != "linux", reason="needs a C++ compiler and LD_PRELOAD")
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("readonly", "refused\nguarded\n"),  # as NFS: a lock needs a descriptor that is open for writing
        ("none", "made twice\n.guarded. guarded\n"),  # no locks at all: nobody knows who lives, so nothing is cleared
    ],
)
def test_network_file_systems_can_be_baked_to(shim, tmp_path, how, expected):
    environment = os.environ | {"LD_PRELOAD": str(shim), "SHIM": how[0]}
    command = [sys.executable, "-c", TRY, str(tmp_path / "guarded")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected
    assert (tmp_path / "guarded").read_bytes() == b"new"


def test_a_device_or_a_folder_is_not_replaced_by_a_small_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            write_atomically(path, b"x")
    write_atomically(tmp_path / "file", b"x", overwrite=False)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", b"y", overwrite=False)
    assert (tmp_path / "file").read_bytes() == b"x"
    assert names(tmp_path) == ["file", "pipe"]


def test_small_files_have_the_permissions_of_the_process_or_of_what_they_replace(tmp_path):
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "private", b"x")
        os.umask(0o022)
        write_atomically(tmp_path / "public", b"x")
        write_atomically(tmp_path / "private", b"y")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"private": 0o600, "public": 0o644}
    assert not re.search("partial", str(names(tmp_path)))
