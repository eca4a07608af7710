"""What importing costs, and the floors: a room imports lower rooms only, so that the parts stay apart."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import safeflux
from safeflux.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGE = Path(safeflux.__file__).parent

FLOORS = [
    {"errors", "atomic", "codes", "machine", "runtime"},
    {"families", "floats", "reference", "promptfile", "packed", "copying", "staging", "signkeys"},
    {"sites", "yamlfile", "detectors", "signing"},
    {"audit", "policyschema", "masks", "maskbytes", "fingerprint", "layout", "watch", "turns", "elements"},
    {"weights", "tensorfile", "patch", "removal"},
    {"ggufile"},
    {"values", "adapters", "checkpoint", "stream"},
    {"policyfile", "maskfile", "bakefolder"},
    {"policy", "policydiff", "doctor"},
    {"policytest"},
    {"store", "card"},
    {"plan", "writes", "masktools"},
    {"modelplan", "status", "lock", "maskimport"},
    {"apply", "bakejob", "onnxfile", "readback"},
    {"receipt", "record", "verifycompact", "onnxweights"},
    {"handle", "subject", "compact", "onnxjob", "onnxverify"},
    {"removed", "compactfile", "bake", "verifyfile"},
    {"guard", "onnxexport"},
    {"demo_result"},
    {"demo", "demo_grid"},
    {"demo_page"},
    {"demo_report"},
    {"trainer"},
    {"cli"},
]
"""Lowest first; rooms of one set do not import one another."""

TRAINER_MAY = {
    "atomic",
    "errors",
    "families",
    "reference",
    "sites",
    "yamlfile",
    "packed",
    "masks",
    "weights",
    "maskfile",
    "apply",
    "promptfile",
    "detectors",
}
HEAVY = {"torch", "diffusers", "transformers", "numpy", "onnxruntime", "safetensors", "PIL", "rich", "pydantic", "yaml"}


def floor_of(room: str) -> int:
    found = [index for index, rooms in enumerate(FLOORS) if room in rooms]
    assert len(found) == 1, f"give the room {room!r} its one place in FLOORS"
    return found[0]


def rooms() -> dict[str, list[Path]]:
    """The source files of each room: a module or a folder of safeflux/, and the trainer."""
    found = {path.stem: [path] for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
    found |= {path.parent.name: sorted(path.parent.rglob("*.py")) for path in PACKAGE.glob("*/__init__.py")}
    # What `python -m safeflux.trainer` runs is the command, as `safeflux/__main__.py` is, which is no room either.
    trainer = sorted(path for path in (ROOT / "trainer").rglob("*.py") if path.name != "__main__.py")
    return found | ({"trainer": trainer} if trainer else {})


def imported_rooms(source: Path) -> set[str]:
    """The rooms that a file imports at any place, by `import safeflux.x` or `from safeflux[.x] import y`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: a relative import"
            names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("safeflux.")}
    return found - {"__version__"}


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_imports_lower_rooms_only(room):
    known = set(rooms()) | {"policies"}
    for source in rooms()[room]:
        for other in (imported_rooms(source) & known) - {room, "policies"}:
            assert floor_of(other) < floor_of(room), f"{source} imports {other}"


def test_the_trainer_imports_only_what_it_may_and_only_the_cli_imports_it():
    for room, sources in rooms().items():
        others = set().union(*map(imported_rooms, sources)) - {room}
        if room == "trainer":
            assert others <= TRAINER_MAY
        elif room != "cli":
            assert "trainer" not in others


def modules_after(code: str) -> tuple[set[str], float]:
    """The top-level modules that a fresh interpreter holds after running code, and the seconds it took in all."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}\nimport sys\nprint('LOADED', *sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - start
    return set(done.stdout.rpartition("LOADED")[2].split()), seconds


def test_import_safeflux_is_light():
    loaded, _ = modules_after("import safeflux")
    assert {name for name in loaded if name.startswith("safeflux")} == {"safeflux"}
    assert not loaded & HEAVY


RUN_CLI = (
    "from safeflux.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
)


def test_help_imports_nothing_but_click():
    loaded, seconds = modules_after(RUN_CLI.format(arguments=["--help"]))
    print(f"safeflux --help: {seconds:.3f} s")
    assert not loaded & HEAVY
    assert {name for name in loaded if name.startswith("safeflux")} == {
        "safeflux",
        "safeflux.cli",
        "safeflux.cli._lazy",
        "safeflux.errors",
    }
    outside = {name.split(".")[0] for name in loaded} - sys.stdlib_module_names - {"__main__", "safeflux", "click"}
    assert {name for name in outside if not name.startswith(("_", "sitecustomize"))} <= {"typing_extensions"}


def test_policy_check_needs_no_torch():
    loaded, seconds = modules_after(RUN_CLI.format(arguments=["policy", "check", "strict"]))
    print(f"safeflux policy check: {seconds:.3f} s")
    assert "safeflux.policy" in loaded
    assert not loaded & {"torch", "numpy", "diffusers", "safetensors"}


def test_baking_and_verifying_files_need_neither_torch_nor_an_extra():
    loaded, _ = modules_after("import safeflux.bake, safeflux.verifyfile, safeflux.cli.bake")
    assert not loaded & {"torch", "diffusers", "onnx", "gguf"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_in_the_table_is_there(name):
    from safeflux.cli import main

    command = main.get_command(None, name)
    assert command is not None
    assert command.name == name
    assert command.help
