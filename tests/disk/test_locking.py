"""A system without file locks, as Windows is: everything is imported, and whatever locks ends in one clear error."""

import subprocess
import sys

import pytest

from safeflux.cli import COMMANDS
from safeflux.disk.staging import staged
from safeflux.errors import SafeFluxError
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


def test_no_module_asks_for_locks_when_it_is_imported():
    modules = sorted({module for module, _, _ in COMMANDS.values()} | {"safeflux.baking.bake", "safeflux.disk.staging"})
    code = f"import sys, importlib; sys.modules['fcntl'] = None; [importlib.import_module(name) for name in {modules}]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
