"""Staging: whatever happens, a name is taken by whole files alone, and nobody else's files are touched."""

import errno
import os
import re
import subprocess
import sys
import textwrap

import pytest

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


def fail():
    raise OSError(errno.EIO, "Input/output error")


def test_what_is_left_behind_is_named(tmp_path):
    def make_unremovable():
        """Put a link in the place of the folder that is written in: what is behind a link is never removed."""
        (work,) = tmp_path.glob(".guarded.*.partial/made")
        work.rename(tmp_path / "elsewhere")
        work.symlink_to(tmp_path / "elsewhere")
        fail()

    with pytest.raises(BakeError) as caught:
        make(tmp_path / "guarded", meanwhile=make_unremovable)
    (left,) = tmp_path.glob(".guarded.*.partial")
    assert f"{left} was left behind" in str(caught.value)
    assert "nothing was left" not in str(caught.value)


SHIM = """
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <dlfcn.h>
static bool is_asked(const char *what) {
    const char *how = getenv("SHIM");
    return how && !strcmp(how, what);
}
static void remove_opened(int fd) {  // the file, and the folder that it is alone in
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    unlink(path);
    *strrchr(path, '/') = 0;
    if (!rmdir(path)) { puts("removed"); fflush(stdout); }
}
extern "C" int flock(int fd, int operation) {
    static bool was_removed = false;
    if (is_asked("no locks")) { errno = ENOLCK; return -1; }
    if (is_asked("removed before it is locked") && !was_removed) { was_removed = true; remove_opened(fd); }
    if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY) { errno = EBADF; return -1; }
    auto real = (int (*)(int, int)) dlsym(RTLD_NEXT, "flock");
    return real(fd, operation);
}
extern "C" int link(const char *from, const char *to) {
    if (is_asked("no hard links")) { errno = EPERM; return -1; }
    auto real = (int (*)(const char *, const char *)) dlsym(RTLD_NEXT, "link");
    return real(from, to);
}
extern "C" int linkat(int here, const char *from, int there, const char *to, int flags) {
    if (is_asked("no hard links")) { errno = EPERM; return -1; }
    auto real = (int (*)(int, const char *, int, const char *, int)) dlsym(RTLD_NEXT, "linkat");
    return real(here, from, there, to, flags);
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
    """A library that makes flock, link and fsync answer as NFS, CIFS and FAT do, or another run be faster."""
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.cpp").write_text(SHIM)
    library = folder / "shim.so"
    command = [COMPILER, "-shared", "-fPIC", "-o", library, folder / "shim.cpp", "-ldl"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr
    return library


PARTS = """
import os, sys
from pathlib import Path
from safeflux.disk.staging import staged
from safeflux.errors import BakeError
target = Path(sys.argv[1])
def make(inner=lambda: None, overwrite=True):
    with staged(target, 10, overwrite=overwrite) as partial:
        partial.write_bytes(b"new")
        inner()
"""
TWICE_AND_KILLED = """
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
"""
NEVER_REPLACED = """
make(overwrite=False)
try:
    make(overwrite=False)
except BakeError as error:
    print("was created by another process meanwhile" in str(error))
"""
NAMES = "print(*sorted(path.name[:9] for path in target.parent.iterdir()))"


@pytest.mark.skipif(not HAS_COMPILER or sys.platform != "linux", reason="needs a C++ compiler and LD_PRELOAD")
@pytest.mark.parametrize(
    ("how", "doing", "expected"),
    [
        # As NFS: a lock needs a descriptor that is open for writing.
        ("locks for writing", TWICE_AND_KILLED, "refused\nguarded\n"),
        # Without locks nobody knows who lives, so nothing is cleared.
        ("no locks", TWICE_AND_KILLED, "made twice\n.guarded. guarded\n"),
        ("no hard links", NEVER_REPLACED, "True\nguarded\n"),
        # Another run takes a fresh stage for one that was left: the inode under the lock is compared.
        ("removed before it is locked", "make()", "removed\nguarded\n"),
    ],
)
def test_on_network_file_systems_and_beside_faster_runs_a_file_is_made(shim, tmp_path, how, doing, expected):
    environment = os.environ | {"LD_PRELOAD": str(shim), "SHIM": how, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", f"{PARTS}\n{doing}\n{NAMES}", str(tmp_path / "guarded")]
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
