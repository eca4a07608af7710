"""The pages name the public API, packages, directions and tests as they are. `make docs` builds the site."""

import re
import tomllib
from pathlib import Path

import pytest

import safeflux

ROOT = Path(__file__).parent.parent
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for pattern in ("README.md", "docs/*.md", "docs/api/*.rst", "examples/*.py", "comfyui/*.[mp]*", "safeflux/*/*.md")
    for path in sorted(ROOT.glob(pattern))
}
ARCHITECTURE = PAGES["docs/architecture.md"]


def documented(pages: dict[str, str]) -> list[str]:
    """The names that the API pages document, as often as they do."""
    directive = r"^\.\. (?:auto\w+|py:data):: safeflux\.(\w+)"
    api = [text for page, text in pages.items() if "/api/" in page]
    return [name for text in api for name in re.findall(directive, text, re.MULTILINE)]


def test_every_public_name_is_on_one_page_of_the_api():
    assert sorted(documented(PAGES)) == sorted(safeflux.__all__)


@pytest.mark.parametrize("name", safeflux.__all__)
def test_a_name_that_is_on_no_page_is_missed(name):
    without = {page: re.sub(rf"^\.\. .*safeflux\.{name}\b.*$", "", text, flags=re.M) for page, text in PAGES.items()}
    assert name not in documented(without)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_pages_and_examples_use_public_names_alone(page):
    used = set(re.findall(r"(?<![\w/.-])safeflux\.(\w+)", PAGES[page]))
    imported = re.findall(r"^\s*from safeflux import (.+)$", PAGES[page], re.MULTILINE)
    names = used.union(*(re.findall(r"\w+", line) for line in imported))
    assert names <= {*safeflux.__all__, "__all__", "trainer", "policies", "detectors"}
    assert not re.search(r"^\s*(from|import) safeflux\.", PAGES[page], re.MULTILINE)


def test_the_architecture_names_every_package():
    for package in CONFIG["tool"]["setuptools"]["packages"]:
        name = package.rpartition(".")[2]
        assert name == "safeflux" or f"`{name}`" in ARCHITECTURE, package


def test_the_directions_are_those_that_import_linter_holds():
    layers = CONFIG["tool"]["importlinter"]["contracts"][0]["layers"]
    assert "\n".join(["```text", *layers[1:], "```"]) in ARCHITECTURE


def test_every_promise_names_tests_that_exist():
    rows = re.findall(r"^\| \d \|.*\|$", PAGES["docs/promises.md"], re.MULTILINE)
    assert len(rows) == 8
    for row in rows:
        named = re.findall(r"`(tests/[\w/.]+)`", row)
        assert named
        assert all((ROOT / path).is_file() for path in named), row


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md", *sorted(PAGES)])
def test_every_path_of_the_repository_that_is_named_exists(page):
    form = r"`((?:safeflux|trainer|policies|tests|benchmarks|comfyui|docs|examples)/[\w./-]*)`"
    named = re.findall(form, (ROOT / page).read_text(encoding="utf-8"))
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []


def test_every_extra_for_users_is_explained_and_exists():
    explained = {
        extra
        for cell in re.findall(r"^\| (`.+?) \|", PAGES["docs/install.md"], re.MULTILINE)
        for extra in re.findall(r"`(\w+)`", cell)
    }
    extras = set(CONFIG["project"]["optional-dependencies"])
    assert explained == extras - {"dev", "docs"}
    asked = {name for text in PAGES.values() for name in re.findall(r"safeflux\[(\w+)\]", text)}
    assert asked <= extras
