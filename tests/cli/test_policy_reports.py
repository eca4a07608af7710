"""`policy check` and `policy test` for CI: folders, standard input, stores, and the formats that CI systems read."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.masks.file import load_masks, save_masks
from safeflux.policy.load import load_policy
from safeflux.policy.schema import Category, Policy

HEAD = "apiVersion: safeflux/v1\nkind: Policy\nname: mine\n"
GOOD = HEAD + "extends: strict\n"
BAD = GOOD + "adpaters: deny\nbudget: {max_share_masked: 3}\n"
TEST = "apiVersion: safeflux/v1\nkind: PolicyTest\npolicy: good.yaml\nexpect:\n  enforced: [weapons, gore]\n"
MASKS = Path(__file__).parents[2] / "policies" / "masks" / "emoji-flux"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in a folder with policies and their test."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"good": GOOD, "deep/in/bad & odd": BAD, ".hidden/bad": BAD, "good.test": TEST}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "empty").mkdir()
    return lambda *arguments, **more: CliRunner().invoke(main, ["policy", *arguments], catch_exceptions=False, **more)


def test_folders_and_files(run):
    result = run("check", ".", "strict")
    assert result.exit_code == 1
    assert [line.split(":")[0] for line in result.stdout.splitlines()[:-1]] == ["good.yaml", "strict"]
    assert result.stdout.splitlines()[-1] == "3 policies: 2 ok, 1 not, 0 warnings"
    assert "deep/in/bad & odd.yaml:5:1: unknown key" in result.stderr
    assert run("check", "empty").exit_code == 3


def test_standard_input(run):
    assert run("check", "-", input=GOOD).stdout == f"-: ok, sha256:{load_policy('strict').digest}\n"
    bad = run("check", "-", input=BAD)
    assert bad.exit_code == 1
    assert "<stdin>:5:1: unknown key 'adpaters'; did you mean 'adapters'?" in bad.stderr
    child = HEAD + "extends: good.yaml\n"  # beside the current folder's files
    assert run("check", "-", input=child).exit_code == 0


def test_a_store_says_which_masks_are_missing_and_which_erase_something_else(run, tmp_path):
    (tmp_path / "store").mkdir()
    shutil.copy(MASKS / "weapons.safetensors", tmp_path / "store" / "vehicles.safetensors")
    body = "categories:\n  weapons: {masks: [weapon]}\n  vehicles: {masks: [vehicles]}\n"
    (tmp_path / "mine.yaml").write_text(HEAD + body)
    assert run("check", "mine.yaml").exit_code == 0  # neither is bundled, and they may be in another store
    result = run("check", "mine.yaml", "--store", "store")
    assert result.exit_code == 1
    assert "mine.yaml:5: warning: category 'weapons': mask set 'weapon' is in no store; did you mean 'weapons'?" in (
        result.stderr
    )
    assert "mine.yaml:6: category 'vehicles': mask set 'vehicles' erases weapons (kitchen-knife" in result.stderr
    (tmp_path / "mine.yaml").write_text(HEAD + body.replace("[vehicles]", "[vehicles], erases: [weapons]"))
    warned = run("check", "mine.yaml", "--store", "store", "--format", "github")
    assert warned.exit_code == 0
    assert warned.stdout.splitlines()[1].startswith("::warning file=mine.yaml,line=5,col=1::category 'weapons'")
    told = json.loads(run("check", "mine.yaml", "--store", "store", "--json").stdout)
    assert [len(told["policies"][0][key]) for key in ("issues", "warnings")] == [0, 1]


def test_a_bundled_mask_of_another_category_is_an_error_unless_the_store_has_one_that_fits(run, tmp_path):
    (tmp_path / "mine.yaml").write_text(HEAD + "categories:\n  alcohol: {masks: [tobacco]}\n")
    result = run("check", "mine.yaml")
    assert result.exit_code == 1
    assert (
        "mine.yaml:5: category 'alcohol': mask set 'tobacco' erases tobacco (cigarette), not alcohol" in result.stderr
    )
    masks, meta = load_masks(MASKS / "alcohol.safetensors")
    (tmp_path / "store").mkdir()
    save_masks(tmp_path / "store" / "tobacco.safetensors", masks, replace(meta, base_model="another"))
    assert run("check", "mine.yaml", "--store", "store").exit_code == 0


def test_sarif_has_all_that_2_1_0_requires(run):
    """The required properties, enumerations and bounds of its published schema."""
    for arguments, code in ((["check", "."], 1), (["test", "good.test.yaml"], 1), (["check", "strict"], 0)):
        result = run(*arguments, "--format", "sarif")
        assert result.exit_code == code
        log = json.loads(result.stdout)
        assert log.keys() == {"$schema", "version", "runs"}
        assert log["version"] == "2.1.0"
        (sarif,) = log["runs"]
        driver = sarif["tool"]["driver"]
        assert driver["name"] == "safeflux"
        assert sarif["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
        rules = [rule["id"] for rule in driver["rules"]]
        assert len(set(rules)) == len(rules)
        assert all(rule["shortDescription"]["text"] for rule in driver["rules"])
        assert bool(sarif["results"]) == bool(code)
        for found in sarif["results"]:
            assert found["message"]["text"]
            assert found["level"] in ("none", "note", "warning", "error")
            assert rules[found["ruleIndex"]] == found["ruleId"]
            (location,) = found["locations"]
            place = location["physicalLocation"]
            assert Path(unquote(place["artifactLocation"]["uri"])).is_file()
            assert " " not in place["artifactLocation"]["uri"]
            assert min(place["region"].values()) >= 1


def test_junit_has_the_elements_and_attributes_of_its_schemas(run):
    """What both the schema of Ant's task and the stricter of Jenkins' plugin require, in their order."""
    for arguments, tests, failures in ((["check", "."], 2, 1), (["test", "good.test.yaml"], 3, 1)):
        root = ElementTree.fromstring(run(*arguments, "--format", "junit").stdout)
        assert root.tag == "testsuites"
        assert sum(int(suite.get("tests")) for suite in root) == tests
        assert sum(int(suite.get("failures")) for suite in root) == failures
        for number, suite in enumerate(root):
            required = {"name", "id", "package", "timestamp", "hostname", "tests", "failures", "errors", "time"}
            assert suite.attrib.keys() == required
            assert int(suite.get("id")) == number
            tags = [child.tag for child in suite]
            cases = ["testcase"] * int(suite.get("tests"))
            assert tags == ["properties", *cases, "system-out", "system-err"]
            assert len(suite.findall("testcase/failure[@type][@message]")) == int(suite.get("failures"))
            assert all(case.attrib.keys() == {"name", "classname", "time"} for case in suite.iter("testcase"))


def test_no_text_of_a_policy_breaks_the_reports(run, tmp_path):
    (tmp_path / "odd.yaml").write_text(HEAD + 'extends: strict\n"a\\x1b<&\\u0007\U0001f600]]>": 1\n', encoding="utf-8")
    assert ElementTree.fromstring(run("check", "odd.yaml", "--format", "junit").stdout).find(".//failure") is not None
    assert json.loads(run("check", "odd.yaml", "--format", "sarif").stdout)["runs"][0]["results"]
    assert run("check", "odd.yaml", "--format", "github").stdout.count("\n") == 1


def test_new_needs_no_parent(run, tmp_path):
    result = run("new", "shop.yaml", "--categories", "weapons, alcohol,style,gambing")
    assert result.exit_code == 0
    assert result.stderr == "warning: gambing has no bundled mask; did you mean 'gambling'?\n"
    made = load_policy("shop.yaml")
    assert list(made.enforced) == ["weapons", "alcohol", "style", "gambing"]
    assert made.budget.max_share_masked == 0.05
    assert "extends" not in (tmp_path / "shop.yaml").read_text()
    assert run("new", "bad.yaml", "--categories", "Weapons").exit_code == 1
    assert not (tmp_path / "bad.yaml").exists()
    assert run("new", "child.yaml", "--categories", "horror", "--extends", "moderate").exit_code == 0
    assert set(load_policy("child.yaml").enforced) == {"weapons", "tobacco", "drugs", "horror"}


def test_lock_overwrites_nothing_unasked(run, tmp_path):
    assert run("lock", "strict").exit_code == 0
    before = (tmp_path / "strict.lock.json").read_bytes()
    assert run("plan", "strict", "--lock", "strict.lock.json").exit_code == 0
    again = run("lock", "moderate", "--out", "strict.lock.json")
    assert again.exit_code == 1
    assert "strict.lock.json: already exists" in again.stderr
    assert (tmp_path / "strict.lock.json").read_bytes() == before
    told = json.loads(run("lock", "moderate", "--out", "strict.lock.json", "--overwrite", "--json").stdout)
    assert set(told["masks"]) == {"weapons", "tobacco", "drugs"}
    assert run("plan", "strict", "--lock", "strict.lock.json").exit_code == 1


def test_a_policy_is_shown_as_a_table():
    lines = repr(load_policy("strict")).splitlines()
    assert lines[0] == f"Policy strict  sha256:{load_policy('strict').digest}"
    assert lines[1] == "  adapters deny, at most 0.05 of each kind of site masked"
    assert lines[-1].split() == ["enforce", "style", "fluent-style", "(erases", "fluent-style)"]
    many = Policy(name="many", categories={f"c{k}": Category(masks=("m",)) for k in range(100)})
    assert len(repr(many).splitlines()) == 20
    assert repr(many).endswith("... and 83 more categories")
    assert "..." not in repr(Policy(name="some", categories={f"c{k}": Category(masks=("m",)) for k in range(18)}))
