"""Packaging: no folder and no data file is left out of the wheel."""

import re
import runpy
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.resources import files
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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


def test_the_description_on_a_package_index_has_no_link_that_leads_nowhere():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    make = runpy.run_path(str(ROOT / "setup.py"))["long_description"]
    for source in (None, "https://host.example/owner/safeflux/"):
        text = make(readme, source)
        assert all(link.startswith("https://") for link in re.findall(r"]\(([^)#]*)", text))
    assert "[Policies](https://host.example/owner/safeflux/blob/HEAD/docs/policies.md): the YAML file" in text
    assert "](https://host.example/owner/safeflux/raw/HEAD/docs/demo.png)" in text
    assert "- Policies: the YAML file" in make(readme, None)


def test_every_address_of_the_project_is_one_that_pages_name_too():
    urls = CONFIG["project"]["urls"]
    assert urls["Paper"].startswith("https://arxiv.org/abs/")
    assert f"arXiv {urls['Paper'].rpartition('/')[2]}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(url.startswith("https://") for url in urls.values())


def test_constraints_pin_exactly_and_within_what_the_package_asks_for():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][\w.]*", line) for line in lines)
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    extras = CONFIG["project"]["optional-dependencies"]
    groups = (extras[name] for name in ("dev", "docs", "eval", "nsfw", "recipe"))
    asked = [*CONFIG["project"]["dependencies"], *chain.from_iterable(groups)]
    assert {re.split(r"[<>=]", one)[0].lower().replace("_", "-") for one in asked} <= pinned


def runtimes_of(lines) -> set[str]:
    """The distributions of ONNX Runtime that an installation of these requirements ends up with."""
    found, seen, todo = set(), set(), [Requirement(line) for line in lines]
    while todo:
        one = todo.pop()
        if one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)):
            continue
        if one.name.startswith("onnxruntime"):
            found.add(one.name)
        try:
            of_it = requires(one.name) or [] if one.name not in seen else []
        except PackageNotFoundError:
            of_it = []
        inner = [Requirement(line) for line in of_it]
        todo += [next_ for next_ in inner if not next_.marker or next_.marker.evaluate({"extra": ""})]
        seen.add(one.name)
    return found


def test_an_installation_has_the_onnxruntime_that_was_chosen_and_no_other():
    extras, base = CONFIG["project"]["optional-dependencies"], CONFIG["project"]["dependencies"]
    assert runtimes_of(base) == set()
    assert runtimes_of([*base, *extras["cpu"]]) == {"onnxruntime"}
    assert runtimes_of([*base, *extras["gpu"]]) == {"onnxruntime-gpu"}
    # open_nsfw's own package asks for one; pyproject.toml and the error of its detector say how to have the other.
    bring_one = {name for name, lines in extras.items() if runtimes_of(lines)}
    assert bring_one == {"cpu", "gpu", "nsfw", "dev"}
    assert runtimes_of([*extras["nsfw"], *extras["dev"]]) == {"onnxruntime"}


def test_make_demo_installs_a_runtime_for_the_judge():
    recipe = re.search(r"^\$\(VENV\)/\.installed:.*\n(\t.*\n)+", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "-e '.[cpu]'" in recipe[0]


def test_the_system_that_is_named_is_the_one_of_the_tests():
    systems = {one.partition(" :: ")[2] for one in CONFIG["project"]["classifiers"] if one.startswith("Operating")}
    assert systems == {"POSIX :: Linux"}
