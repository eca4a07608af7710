"""The doctor: versions, requirements, damaged files, and a machine whose torch is broken."""

import ast
import hashlib
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from safeflux.cli.doctor import doctor
from safeflux.doctor.checks import find_damage, find_known, find_unmet, installed, shipped
from safeflux.doctor.known import KNOWN, PACKAGES, Level
from safeflux.doctor.machine import ask_onnxruntime, ask_torch, look

ROOT = Path(__file__).parents[2]
WRITE_SUMS = (
    "sha256sum $(python -c 'from safeflux.doctor.checks import shipped; print(*shipped())') "
    "> safeflux/reference/sha256.txt"
)
RUN = "from safeflux.cli.doctor import doctor; doctor()"
NO_CHECKOUT = "import sys; sys.meta_path = [one for one in sys.meta_path if 'editable' not in repr(one).lower()]"


def known(versions):
    return {(finding.what, finding.source) for finding in find_known(versions)}


def test_this_installation_has_nothing_bad():
    assert not [finding for finding in [*find_damage(), *find_unmet()] if finding.level is Level.BAD]
    result = CliRunner().invoke(doctor, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("0 bad, ")


@pytest.mark.parametrize(
    ("versions", "sources"),
    [
        ({"torch": "2.13.0+cpu"}, set()),
        ({"torch": "2.10.0rc1"}, set()),
        ({"torch": "2.9.1"}, {"CVE-2026-24747"}),
        ({"torch": "2.5.1+cu124"}, {"CVE-2026-24747", "CVE-2025-32434"}),
        ({"torch": "2.10.0.post1"}, set()),
        ({"torch": "2!1.0"}, set()),  # a later epoch
        ({"torch": "built-by-hand"}, set()),  # `find_unmet` reports it
        ({"torch": None}, set()),
        ({"torchao": "0.18.0"}, {"pytorch/ao#4713, safeflux's tests/model/test_forward_values.py"}),
        ({"nunchaku": "0.16.1"}, {"nunchux-ai/ComfyUI-nunchaku#5"}),
        ({"nunchaku": "1.0.2+torch2.7"}, set()),
        ({"model-signing": "1.1.1"}, {"safeflux's tests/evidence/test_signatures.py"}),
        ({"model-signing": "1.1.1", "pyopenssl": "26.4.0"}, set()),
    ],
)
def test_what_is_known_of_versions(versions, sources):
    assert {source for _, source in known(versions)} == sources


def test_every_fact_is_of_a_package_that_is_looked_at_and_has_a_source():
    assert {name for fact in KNOWN for name in (fact.package, fact.without) if name} <= set(PACKAGES)
    for source in {source for fact in KNOWN for source in fact.source.split(", ")}:
        is_ours = source.startswith("safeflux's tests/") and (ROOT / source.removeprefix("safeflux's ")).is_file()
        assert is_ours or re.fullmatch(r"CVE-\d{4}-\d+|[\w.-]+/[\w.-]+#\d+", source), source


def distribution(folder, name, version, *lines, module=""):
    """What pip writes down of a package; with `module`, that package's folder too."""
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    head = (f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n", *(f"{line}\n" for line in lines))
    (about / "METADATA").write_text("".join(head))
    if module:
        (about / "top_level.txt").write_text(f"{module}\n")
        (folder / module).mkdir(exist_ok=True)
        (folder / module / "__init__.py").touch()


def doctor_of(folder, expression):
    """What the doctor says where only the packages of `folder`, and those that it imports itself, are installed."""
    code = (
        "import sys; import safeflux.doctor.checks as checks\n"
        f"sys.path = [{str(folder)!r}]; sys.meta_path = [one for one in sys.meta_path if 'PathFinder' in repr(one)]\n"
        f"print([str(one) for one in checks.{expression}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return ast.literal_eval(done.stdout)


REQUIRED = "Requires-Dist: torch>=2.10"


@pytest.mark.parametrize(
    ("found", "lines", "told"),
    [
        ("2.9.1", [REQUIRED], "bad: torch 2.9.1: is not >=2.10"),
        ("2.10.0rc1", [REQUIRED], "bad: torch 2.10.0rc1: is not >=2.10"),
        ("2.10.0.dev20260101+cpu", [REQUIRED], "bad: torch 2.10.0.dev20260101+cpu: is not >=2.10"),
        ("2.10", [REQUIRED], ""),
        ("2.10.0+cu128", [REQUIRED], ""),
        ("10.0", [REQUIRED], ""),
        ("3.0rc1", [REQUIRED], ""),
        ("built-by-hand", [REQUIRED], "limit: torch built-by-hand: its version cannot be compared with >=2.10"),
        ("2.11", ["Requires-Dist: torch!=2.11,<3,>=2.10"], "bad: torch 2.11: is not !=2.11,<3,>=2.10"),
        ("2.11", ["Requires-Dist: torch~=2.10.1"], "bad: torch 2.11: is not ~=2.10.1"),
        ("2.9", ["Requires-Dist: torch>=2.10; sys_platform == 'win32'"], ""),
        ("2.9", ["Requires-Dist: Torch[all] (>=2.10) ; python_version > '3'"], "bad: Torch 2.9: is not >=2.10"),
        ("2.9", ["Provides-Extra: x", 'Requires-Dist: torch>=2.10; extra == "x"'], "limit: torch 2.9: is not >=2.10"),
        ("2.9", ["Provides-Extra: x", 'Requires-Dist: other>=2.10; extra == "x"'], ""),
        ("2.9", ["Requires-Dist: other>=1"], "bad: other: is not installed"),
        ("2.9", ["Provides-Extra: x", 'Requires-Dist: onnx>=1; extra == "x"'], ""),
    ],
)
def test_requirements_are_read_as_pip_reads_them(tmp_path, found, lines, told):
    distribution(tmp_path, "safeflux", "1.0", *lines)
    distribution(tmp_path, "torch", found)
    findings = doctor_of(tmp_path, "find_unmet()")
    assert [told in finding for finding in findings] == [True] * bool(told)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["onnxruntime"], []),
        (["onnxruntime-gpu"], []),
        (["onnxruntime-directml"], []),
        (["onnxruntime", "onnxruntime-gpu"], ["bad: onnxruntime and onnxruntime-gpu: they are installed side by side"]),
        (["onnxruntime-openvino", "onnxruntime"], ["bad: onnxruntime and onnxruntime-openvino: they are installed"]),
        ([], ["limit: ONNX Runtime: it is not installed, so `demo`, `eval` and `train` have no judge"]),
    ],
)
def test_one_onnxruntime_is_right_two_are_bad_and_none_is_a_limit(tmp_path, names, told):
    for name in names:
        distribution(tmp_path, name, "1.25", module="onnxruntime")
    findings = doctor_of(tmp_path, "find_onnxruntime()")
    assert [finding.startswith(start) for finding, start in zip(findings, told, strict=True)] == [True] * len(told)
    for finding in findings:
        assert "pip install 'safeflux[cpu]'" in finding
        assert "pip install 'safeflux[gpu]'" in finding
        assert (f"pip uninstall {' '.join(sorted(names))}, then" in finding) is finding.startswith("bad")


def test_an_onnxruntime_whose_files_went_with_another_is_bad(tmp_path):
    distribution(tmp_path, "onnxruntime", "1.25", module="onnxruntime")
    (tmp_path / "onnxruntime" / "__init__.py").unlink()
    (finding,) = doctor_of(tmp_path, "find_onnxruntime()")
    assert finding.startswith("bad: onnxruntime: its files are missing")


def test_versions_are_those_of_pip():
    assert installed(["click", "no-such-package"]) == {"click": version("click"), "no-such-package": None}


def test_the_digests_are_those_of_all_files_that_are_shipped():
    listed = (ROOT / "safeflux" / "reference" / "sha256.txt").read_text()
    told = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}\n" for name, file in shipped().items())
    assert listed == told, f"write it anew: {WRITE_SUMS}"
    assert {"policies/strict.yaml", "safeflux/reference/judge.onnx"} <= shipped().keys()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package as a wheel lays it out."""
    folder = tmp_path_factory.mktemp("site")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "safeflux", folder / "safeflux", ignore=ignore)
    shutil.copytree(ROOT / "policies", folder / "safeflux" / "policies", ignore=ignore)
    return folder / "safeflux"


def run(folder, *arguments):
    """The command in a process that finds this folder's packages first, and nothing of an editable install."""
    code = f"{NO_CHECKOUT}; sys.path.insert(0, {str(folder)!r}); {RUN}"
    return subprocess.run([sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_a_copy_that_is_whole_is_found_whole(copy):
    assert json.loads(run(copy.parent, "--json").stdout)["ok"]


def damage(path):
    """Change one bit in the middle."""
    whole = path.read_bytes()
    place = len(whole) // 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])


@pytest.mark.parametrize(
    ("name", "break_it", "told"),
    [
        ("reference/emoji-flux/transformer/diffusion_pytorch_model.safetensors", damage, "is damaged"),
        ("reference/judge.onnx", Path.unlink, "is missing"),
        ("policies/masks/emoji-flux/weapons.safetensors", damage, "is damaged"),
        (
            "policies/masks/emoji-flux/weapons.safetensors",
            lambda path: path.write_bytes(b""),
            "is refused by the reader",
        ),
        ("policies", shutil.rmtree, "is missing"),
        ("reference/sha256.txt", Path.unlink, "is missing"),
    ],
)
def test_a_file_that_is_missing_or_damaged_is_told(copy, tmp_path, name, break_it, told):
    shutil.copytree(copy, tmp_path / "safeflux")
    break_it(tmp_path / "safeflux" / name)
    done = run(tmp_path, "--json")
    assert done.returncode == 1
    findings = [finding for finding in json.loads(done.stdout)["findings"] if finding["level"] == "bad"]
    assert findings
    assert all(Path(name).name in finding["what"] or name in finding["what"] for finding in findings)
    assert any(told in finding["reason"] for finding in findings)


def test_the_machine():
    machine = look(ROOT)
    assert machine.cores >= 1
    assert machine.free > 0
    assert machine.memory > 2**28
    assert machine.python == sys.version.split()[0]


def test_devices_are_those_that_the_libraries_name():
    cpu, *_ = ask_torch().value
    assert (cpu["kind"], cpu["bf16"]) == ("cpu", True)
    assert "CPUExecutionProvider" in ask_onnxruntime().value


@pytest.mark.parametrize(
    ("torch", "told"),
    [
        ("raise ImportError('libtorch_cpu.so: cannot open shared object file')", "cannot open shared object file"),
        ("import os; os.abort()", "crashed the process"),
        ("import sys; sys.exit(3)", "it gave no reason"),
        ("import sys; sys.exit(0)", "process ended without an answer"),
    ],
)
def test_a_broken_torch_is_told_in_words(copy, tmp_path, monkeypatch, torch, told):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(torch)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run(copy.parent, "--devices")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("bad: torch: cannot be used: "))
    assert told in line
    assert run(copy.parent).returncode == 0  # not asked


def test_the_doctor_imports_no_torch():
    code = f"import sys\ntry:\n    {RUN}\nfinally:\n    print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
