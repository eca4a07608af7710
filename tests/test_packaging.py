"""Packaging: no folder and no data file is left out of the wheel."""

import re
import tomllib
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

import safeflux

ROOT = Path(__file__).parent.parent
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAPPED = {"trainer": "safeflux.trainer", "policies": "safeflux.policies"}
CODE = {".py", ".pyc"}


def folders() -> dict[str, Path]:
    """Each importable folder of the repository by the name it is imported under."""
    found: dict[str, Path] = {}
    for top in ("safeflux", *MAPPED):
        for init in (ROOT / top).rglob("__init__.py"):
            dotted = ".".join(init.parent.relative_to(ROOT).parts)
            found[dotted.replace(top, MAPPED.get(top, top), 1)] = init.parent
    return found


def test_every_folder_with_code_is_in_the_wheel():
    assert sorted(CONFIG["tool"]["setuptools"]["packages"]) == sorted(folders())


@pytest.mark.parametrize("package", sorted(folders()))
def test_every_data_file_is_in_the_wheel(package):
    """Each file that is not code matches a pattern of its package, and is found through importlib.resources."""
    patterns = CONFIG["tool"]["setuptools"]["package-data"].get(package, [])
    nested = [path for name, path in folders().items() if name.startswith(f"{package}.")]
    folder = folders()[package]
    wanted = {found for pattern in patterns for found in folder.glob(pattern)}
    for path in folder.rglob("*"):
        if path.is_dir() or path.suffix in CODE or any(path.is_relative_to(inner) for inner in nested):
            continue
        assert path in wanted, f"{path} matches none of {patterns}"
        assert files(package).joinpath(*path.relative_to(folder).parts).is_file()


def test_the_version_is_the_same_everywhere():
    assert version("safeflux") == safeflux.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[({re.escape(safeflux.__version__)}|Unreleased)\]", changelog, re.MULTILINE)


def test_constraints_pin_exactly_and_within_what_the_package_asks_for():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][\w.]*", line) for line in lines)
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    extras = CONFIG["project"]["optional-dependencies"]
    asked = CONFIG["project"]["dependencies"] + [*extras["dev"], *extras["eval"], *extras["nsfw"], *extras["recipe"]]
    assert {re.split(r"[<>=]", one)[0].lower().replace("_", "-") for one in asked} <= pinned
