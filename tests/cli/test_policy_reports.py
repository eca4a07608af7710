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
    result = run("check", "empty", "strict")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (3, "2 policies: 1 ok, 1 not, 0 warnings")
    assert result.stderr == "empty: expected a policy (.yaml or .yml) in this folder, found none\n"


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
    result = run("new", "shop.yaml", "--categories", "weapons, alcohol,style", "--categories", "vehicles,weapons")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: vehicles has no bundled mask; known: ")
    made = load_policy("shop.yaml")
    assert list(made.enforced) == ["weapons", "alcohol", "style", "vehicles"]
    assert made.budget.max_share_masked == 0.05
    assert "extends" not in (tmp_path / "shop.yaml").read_text()
    assert run("new", "child.yaml", "--categories", "horror", "--extends", "moderate").exit_code == 0
    assert set(load_policy("child.yaml").enforced) == {"weapons", "tobacco", "drugs", "horror"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.yaml", "--categories", "weapons,gambing"], "no bundled mask is named 'gambing'; did you mean 'gambling'?"),
        (["a.yaml", "--categories", "Weapons"], "'Weapons' is not a name: a name is 1 to 64 lower-case"),
        (["a.yaml", "--categories", "a: {b"], "'a: {b' is not a name"),
        (["a.yaml", "--categories", " , "], "expected names of categories, got ' , '"),
        (["a.yaml", "--categories="], "--categories: expected a value, got an empty text"),
        (["My shop.yaml"], "a policy has the name of its file, and 'My shop' is not a name"),
        (["a.txt"], "expected a name that ends in .yaml"),
    ],
)
def test_new_writes_nothing_that_is_a_slip(run, tmp_path, arguments, message):
    before = sorted(tmp_path.iterdir())
    result = run("new", *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.output
    assert sorted(tmp_path.iterdir()) == before


def test_new_of_names_that_yaml_reads_as_numbers_of_all_and_of_masks_in_a_store(run, tmp_path):
    for name in ("2026", "null", "1e5"):
        assert run("new", f"{name}.yaml", "--categories", "18,true").exit_code == 0
        assert load_policy(f"{name}.yaml").enforced == {"18": ("18",), "true": ("true",)}
    assert run("new", "every.yaml", "--categories", "all").stderr == ""
    assert load_policy("every.yaml").enforced == load_policy("strict").enforced
    (tmp_path / "store").mkdir()
    shutil.copy(MASKS / "weapons.safetensors", tmp_path / "store" / "weapon.safetensors")
    made = run("new", "own.yaml", "--categories", "weapon", "--store", "store")
    assert (made.exit_code, made.stderr) == (0, "")
    assert made.stdout.endswith("safeflux policy check own.yaml --store store\n")
    (tmp_path / "link.yaml").symlink_to("nowhere.yaml")
    assert "link.yaml: already exists" in run("new", "link.yaml").stderr


def test_one_bad_file_of_many_hides_no_other(run, tmp_path):
    (tmp_path / "bad.test.yaml").write_text(TEST.replace("[weapons, gore]", "weapons"))
    files = ["nowhere.yaml", "bad.test.yaml", "good.test.yaml"]
    result = run("test", *files)
    assert result.exit_code == 3
    assert "nowhere.yaml: does not exist" in result.stderr
    assert "bad.test.yaml:5:13: expect.enforced: expected a list" in result.stderr
    assert result.stdout.splitlines()[-1] == "2 of 3 hold; not tested: 2 of the files"
    told = json.loads(run("test", *files, "--json").stdout)
    assert (told["ok"], len(told["outcomes"]), [each["line"] for each in told["errors"]]) == (False, 3, [0, 5])
    root = ElementTree.fromstring(run("test", *files, "--format", "junit").stdout)
    assert [suite.get("failures") for suite in root] == ["1", "1", "1"]
    assert "::error file=bad.test.yaml,line=5,col=13::" in run("test", *files, "--format", "github").stdout
    assert run("test", *files[1:]).exit_code == 1

    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine.safetensors").write_bytes(b"damaged")
    (tmp_path / "mine.yaml").write_text(HEAD + "categories:\n  weapons: {masks: [mine]}\n")
    result = run("check", "mine.yaml", "good.yaml", "--store", "store", "--format", "sarif")
    assert result.exit_code == 1
    (found,) = json.loads(result.stdout)["runs"][0]["results"]
    assert (found["ruleId"], "mine.safetensors" in found["message"]["text"]) == ("mask-unreadable", True)


def test_annotations_come_from_findings_alone(run, tmp_path):
    """A file's name cannot begin a workflow command, and `--json` is not overruled silently."""
    odd = "a\n::stop-commands::x,y%.yaml"
    (tmp_path / odd).write_text(GOOD)
    lines = run("check", odd, "--format", "github").stdout.splitlines()
    assert [line.startswith("::") for line in lines] == [False]
    (tmp_path / odd).write_text(BAD)
    lines = run("check", odd, "--format", "github").stdout.splitlines()
    place = "file=a%0A%3A%3Astop-commands%3A%3Ax%2Cy%25.yaml"
    assert [line.split(",line=")[0] for line in lines] == [f"::error {place}"] * 2
    assert not [line for line in run("check", odd).stderr.splitlines() if line.startswith("::")]
    assert run("check", "strict", "--json", "--format", "sarif").exit_code == 2


def test_an_expectation_that_fails_is_named_in_every_format(run, tmp_path):
    word = "100%<&>: \U0001f600"
    text = TEST.replace("[weapons, gore]", "[weapons]")
    (tmp_path / "odd.test.yaml").write_text(f'{text}  erases: ["{word}", "x\\n::error::"]\n', encoding="utf-8")
    human = run("test", "odd.test.yaml").stdout.splitlines()
    assert human[1].startswith(f"FAILED  odd.test.yaml:6: erases {word}: no enforced mask does")
    assert (len(human), human[-1]) == (5, "2 of 4 hold")
    first, second = run("test", "odd.test.yaml", "--format", "github").stdout.splitlines()
    assert first.startswith("::error file=odd.test.yaml,line=6,col=1::erases 100%25<&>: \U0001f600: no enforced mask")
    assert "::erases x%0A::error::: no" in second
    failure, _ = ElementTree.fromstring(run("test", "odd.test.yaml", "--format", "junit").stdout).iter("failure")
    assert failure.get("message").startswith(f"erases {word}: no enforced")
    (sarif,) = json.loads(run("test", "odd.test.yaml", "--format", "sarif").stdout)["runs"]
    assert sarif["results"][0]["message"]["text"].startswith(f"erases {word}: no enforced")


def test_lock_overwrites_no_input(run, tmp_path):
    result = run("lock", "good.yaml", "--out", "./good.yaml", "--overwrite")
    assert result.exit_code == 1
    assert "good.yaml: is an input of this command (good.yaml), and stays" in result.stderr
    assert (tmp_path / "good.yaml").read_text() == GOOD


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
