"""ONNX Runtime is optional: what works without it, and what its absence or damage is called."""

import importlib
import json
import subprocess
import sys

import pytest

from safeflux.detectors.onnx_file import OnnxDetector
from safeflux.errors import ConfigError
from safeflux.evaluation.report import library_versions
from safeflux.reference.judge import JUDGE, Judge
from safeflux.reference.onnx_session import open_session, providers, runtimes

INSTALLS = ("pip install 'safeflux[cpu]'", "pip install 'safeflux[gpu]'")


@pytest.fixture
def without_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # Python's own way to say: not to be imported


@pytest.fixture
def only_from(monkeypatch):
    """Import onnxruntime from a folder, whatever is installed."""

    def look_in(folder):
        for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "path", [str(folder)])
        importlib.invalidate_caches()

    return look_in


@pytest.mark.parametrize("opened", [Judge, providers, lambda: open_session(JUDGE), lambda: OnnxDetector(JUDGE, JUDGE)])
@pytest.mark.usefixtures("without_onnxruntime")
def test_without_it_whatever_judges_says_how_to_get_it(opened):
    with pytest.raises(ConfigError, match="judging pictures needs ONNX Runtime, which is not installed") as raised:
        opened()
    assert all(install in str(raised.value) for install in INSTALLS)


WITHOUT = """
import importlib, json, pkgutil, sys
sys.modules["onnxruntime"] = None
import safeflux
for module in pkgutil.walk_packages(safeflux.__path__, "safeflux."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from click.testing import CliRunner
from safeflux.cli import main
from safeflux.reference.model import load_pipeline
handle = safeflux.guard(load_pipeline(), policy="strict")
told = {"guard": handle.verify(deep=True).state}
for command in ("demo", "eval --policy strict", "train --category weapons"):
    result = CliRunner().invoke(main, [*command.split(), "--out", sys.argv[1] + "/" + command[:4]])
    told[command] = result.exit_code, result.stderr
print(json.dumps(told))
"""


def test_without_it_everything_is_imported_and_guards_and_what_judges_ends_before_it_draws(tmp_path):
    done = subprocess.run([sys.executable, "-c", WITHOUT, tmp_path], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.pop("guard") == "GUARDED"
    for code, error in told.values():
        assert code == 3
        assert all(install in error for install in INSTALLS)
        assert "Traceback" not in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_empty_folder_that_another_distribution_left_is_named(only_from, tmp_path):
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    only_from(tmp_path)
    with pytest.raises(ConfigError, match=r"its files are missing; pip uninstall onnxruntime, then"):
        Judge()


@pytest.mark.parametrize(
    "fault", ["raise ImportError('libcudart.so.12: cannot open')", "import onnxruntime.no_such_part"]
)
def test_an_import_that_fails_is_told_with_its_reason_and_the_cure(only_from, tmp_path, fault):
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(fault)
    only_from(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be imported \(.*(libcudart|no_such_part).*\); pip uninstall"):
        Judge()


def test_reports_name_the_distribution_that_judged(monkeypatch, tmp_path):
    assert runtimes().items() <= library_versions().items()
    about = tmp_path / "onnxruntime_gpu-1.25.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.4\nName: onnxruntime-gpu\nVersion: 1.25\n")
    (about / "top_level.txt").write_text("onnxruntime\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert library_versions()["onnxruntime-gpu"] == "1.25"
