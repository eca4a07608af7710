"""`safeflux pack`."""

import json

import pytest
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.packs.load import bundled_packs, known_packs, load_pack
from safeflux.packs.schema import pack_schema


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["pack", *arguments], catch_exceptions=False)


@pytest.mark.parametrize("source", bundled_packs())
def test_a_new_pack_is_valid_and_named_by_its_file(run, tmp_path, source):
    result = run("new", "mine.yaml", "--from", source)
    assert result.exit_code == 0, result.output
    assert load_pack(tmp_path / "mine.yaml").name == "mine"
    assert json.loads((tmp_path / "pack.schema.json").read_text()) == pack_schema()
    assert (tmp_path / "mine.yaml").read_text().startswith("# yaml-language-server: $schema=pack.schema.json\n")
    checked = run("check", "mine.yaml", source)
    assert checked.stdout.startswith("mine.yaml: mine, ")
    told = json.loads(run("new", "other.yaml", "--from", source, "--json").stdout)
    assert told == {"path": "other.yaml", "schema": "pack.schema.json", "source": source}
    again = run("new", "mine.yaml")
    assert (again.exit_code, "already exists" in again.stderr) == (1, True)


def test_all_packs_are_listed(run):
    assert [line.split()[0] for line in run("list").stdout.splitlines()] == known_packs()
    assert json.loads(run("list", "--json").stdout)["weapons"]["concepts"]["bomb"]["anchor"] == "a melon"
    assert json.loads(run("schema").stdout) == pack_schema()


def test_mistakes_have_an_excerpt_and_exit_code_1(run, tmp_path):
    (tmp_path / "bad.yaml").write_text("apiVersion: safeflux/v1\nkind: Pack\nname: bad\n")
    result = run("check", "bad.yaml")
    assert result.exit_code == 1
    assert "bad.yaml:1:1: the key 'concepts' is missing" in result.stderr
    assert run("check", "none.yaml").exit_code == 3
    assert run("new", "mine.txt").exit_code == 2
    assert run("new", "mine.yaml", "--from", "weapon").exit_code == 3
