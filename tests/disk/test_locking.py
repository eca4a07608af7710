"""A system without file locks, as Windows is: everything is imported, and whatever locks ends in one clear error."""

import subprocess
import sys

import pytest

from safeflux.cli import COMMANDS
from safeflux.disk.locking import check_unlocked, locked
from safeflux.disk.staging import staged
from safeflux.errors import ConfigError, SafeFluxError
from safeflux.evidence.audit import AuditLog


@pytest.fixture
def without_locks(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # Python's own way to say: not to be imported


@pytest.mark.usefixtures("without_locks")
def test_a_log_is_not_appended_to_without_a_lock(tmp_path):
    with pytest.raises(SafeFluxError, match=r"needs the file locks of Linux or macOS.*inside WSL"):
        AuditLog(tmp_path / "audit.jsonl").append("guard", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_locks")
def test_nothing_is_staged_without_a_lock(tmp_path):
    with (
        pytest.raises(SafeFluxError, match=r"needs the file locks of Linux or macOS.*inside WSL"),
        staged(tmp_path / "guarded", 1),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_one_process_at_a_time_holds_a_folder_and_a_kill_releases_it(tmp_path):
    folder = tmp_path / "new/run"
    check_unlocked(folder)
    assert not folder.parent.exists()
    code = f"from safeflux.disk.locking import locked\nwith locked({folder!r}): print('in', flush=True), input()"
    code = "from pathlib import PosixPath\n" + code
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        with (
            pytest.raises(ConfigError, match=r"run: another process is using it; wait .* another folder"),
            locked(folder),
        ):
            pass
        with pytest.raises(ConfigError, match="another process is using it"):
            check_unlocked(folder)
        other.kill()
    with locked(folder):
        pass


def test_no_module_asks_for_locks_when_it_is_imported():
    modules = sorted({module for module, _, _ in COMMANDS.values()} | {"safeflux.baking.bake", "safeflux.disk.staging"})
    code = f"import sys, importlib; sys.modules['fcntl'] = None; [importlib.import_module(name) for name in {modules}]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
