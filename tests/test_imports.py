"""What importing costs. Which package may import which is held by import-linter (pyproject.toml, `make lint`)."""

import pkgutil
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import safeflux.trainer

import safeflux
from safeflux.cli import COMMANDS
from tests.helpers.fresh import RUN_CLI, modules_after

HEAVY = {"torch", "diffusers", "transformers", "numpy", "onnxruntime", "safetensors", "PIL", "rich", "pydantic", "yaml"}
TORCH_FREE = (
    *(
        "disk",
        "families",
        "policy",
        "evidence",
        "detectors",
        "packs",
        "profiles",
        "masks",
        "plan",
        "checkpoints",
        "doctor",
        "baking",
    ),
)
OF_EXTRAS = {"safeflux.checkpoints.gguf_file"} | {
    f"safeflux.checkpoints.{name}" for name in ("onnx_model", "onnx_weights", "onnx_source")
}
"""Modules that need a package of an extra; none of them is imported before such a file is opened."""


def test_import_safeflux_is_light():
    loaded, _ = modules_after("import safeflux")
    assert {name for name in loaded if name.startswith("safeflux")} == {"safeflux", "safeflux._version"}
    assert not loaded & HEAVY


def test_the_house_is_small_at_every_door():
    """At most 8 files at the top, at most 16 in a package, and at most 300 lines in a file."""
    home = Path(safeflux.__file__).parent
    assert len(list(home.glob("*.py"))) <= 8
    # An editable install has these elsewhere.
    mapped = [Path(str(import_module(f"safeflux.{name}").__file__)).parent for name in ("trainer", "policies")]
    files = [path for top in (home, *mapped) for path in top.rglob("*.py")]
    for package in {path.parent for path in files} - {home}:
        assert len(list(package.glob("*.py"))) <= 16, package
    for path in files:
        assert path.read_text(encoding="utf-8").count("\n") <= 300, path


OTHER_FOLDERS = {"comfyui", "conformance", "device", "helpers", "recipe"}
"""Those of `tests/` that mirror no package of safeflux."""


def test_tests_mirror_the_packages_and_use_no_private_name_of_another():
    tests, home = Path(__file__).parent, Path(safeflux.__file__).parent
    packages = {path.name for path in (*home.iterdir(), Path(str(safeflux.trainer.__file__)).parent)}
    folders = {path.name for path in tests.iterdir() if path.is_dir() and path.name[0] not in "._"}
    assert folders - OTHER_FOLDERS < packages
    private = r"""from safeflux\.?([\w.]*) import (?:.*\W)?_[a-z]|(?:["']|from )safeflux\.?([\w.]*)\._[a-z]"""
    for path in tests.rglob("*/*.py"):
        own = path.relative_to(tests).parts[0]
        used = {"".join(found) for found in re.findall(private, path.read_text(encoding="utf-8"))}
        assert {name for name in used if name.partition(".")[0] != own} == set(), path


def test_torch_free_packages_need_neither_torch_nor_an_extra():
    """One interpreter imports them all, and says which module brought something heavy."""
    insides = [import_module(f"safeflux.{package}") for package in TORCH_FREE]
    names = {m.name for one in insides for m in pkgutil.walk_packages(one.__path__, f"{one.__name__}.")} - OF_EXTRAS
    code = (
        "import sys\nfrom importlib import import_module\n"
        f"for name in {sorted(names)}:\n"
        "    import_module(name)\n"
        "    assert not sys.modules.keys() & {'torch', 'diffusers', 'onnx', 'gguf'}, name\n"
    )
    loaded, _ = modules_after(code)
    assert names <= loaded


def test_help_imports_nothing_but_click():
    loaded, seconds = modules_after(RUN_CLI.format(arguments=["--help"]))
    print(f"safeflux --help: {seconds:.3f} s")
    assert not loaded & HEAVY
    assert {name for name in loaded if name.startswith("safeflux")} == {
        "safeflux",
        "safeflux._version",
        "safeflux.cli",
        "safeflux.cli._lazy",
        "safeflux.cli._logs",
        "safeflux.errors",
    }
    outside = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"__main__", "safeflux", "click"}
    assert {name for name in outside if not name.startswith(("_", "sitecustomize"))} <= {"typing_extensions"}


def test_policy_check_needs_no_torch():
    loaded, seconds = modules_after(RUN_CLI.format(arguments=["policy", "check", "strict"]))
    print(f"safeflux policy check: {seconds:.3f} s")
    assert "safeflux.policy.load" in loaded
    assert not loaded & {"torch", "numpy", "diffusers", "safetensors"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_in_the_table_is_there(name):
    from safeflux.cli import main

    command = main.get_command(None, name)
    assert command is not None
    assert command.name == name
    assert command.help
