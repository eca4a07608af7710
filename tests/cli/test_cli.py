"""The command line: what is printed where, and the exit codes."""

import json

import click
import pytest
import torch
from click.testing import CliRunner

import safeflux
from safeflux.cli import COMMANDS, main
from safeflux.cli._lazy import LazyGroup
from safeflux.errors import ApplyError
from safeflux.masks.encoding import digest
from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.meta import MaskMeta
from safeflux.policy.load import load_policy, policy_schema

GOOD = "apiVersion: safeflux/v1\nkind: Policy\nname: mine\nextends: strict\n"
BAD = GOOD + "adpaters: deny\nbudget: {max_share_masked: 3}\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in an empty folder that holds one good and one bad policy."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    return lambda *arguments: CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def test_help_lists_every_command_with_its_line(run):
    result = run("--help")
    assert result.exit_code == 0
    for name, (_, _, line) in COMMANDS.items():
        assert name in result.stdout
        assert " ".join(line.split()) in " ".join(result.stdout.split())


def test_version(run):
    assert run("--version").stdout == f"safeflux {safeflux.__version__}\n"


def test_wrong_use_is_exit_code_2(run):
    for arguments in (["nothing"], ["policy", "check"], ["policy", "explain", "--nothing", "strict"], ["mask", "show"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Usage: " in result.stderr


def test_policy_check_tells_all_errors_and_exits_1(run):
    result = run("policy", "check", "good.yaml", "bad.yaml", "strict")
    assert result.exit_code == 1
    assert result.stdout == (
        f"good.yaml: ok, sha256:{load_policy('good.yaml').digest}\nstrict: ok, sha256:{load_policy('strict').digest}\n"
        "3 policies: 2 ok, 1 not, 0 warnings\n"
    )
    lines = result.stderr.splitlines()
    assert lines[0] == "the policy has 2 errors"
    assert lines[1] == "bad.yaml:5:1: unknown key 'adpaters'; did you mean 'adapters'?"
    assert lines[4].startswith("bad.yaml:6:28: budget.max_share_masked")


def test_policy_check_of_good_policies_exits_0(run):
    assert run("policy", "check", "good.yaml", "strict").exit_code == 0


def test_policy_check_json(run):
    result = run("policy", "check", "--format", "json", "good.yaml", "bad.yaml")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["ok"] is False
    good, bad = report["policies"]
    digest = load_policy("good.yaml").digest
    assert good == {"policy": "good.yaml", "ok": True, "digest": digest, "issues": [], "warnings": []}
    assert [(issue["line"], issue["column"]) for issue in bad["issues"]] == [(5, 1), (6, 28)]


def test_policy_check_for_github_annotates_the_lines(run, tmp_path):
    (tmp_path / "odd,name.yaml").write_text(BAD.replace("name: mine", "name: 100%"))
    result = run("policy", "check", "--format", "github", "good.yaml", "odd,name.yaml")
    assert result.exit_code == 1
    first, *rest = result.stdout.splitlines()
    assert first.startswith("good.yaml: ok")
    assert rest[0].startswith("::error file=odd%2Cname.yaml,line=3,col=7::")
    assert "'100%25'" in rest[0]
    assert len(rest) == 4


def test_policy_diff_tells_each_change_and_what_they_come_to(run, tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD.replace("strict", "moderate") + "budget: {max_share_masked: 0.01}\n")
    result = run("policy", "diff", "family", "mine.yaml")
    assert result.exit_code == 0
    first, *rest = result.stdout.splitlines()
    assert first == "family -> mine.yaml: mixed"
    assert rest[0] == "  tightens  budget.max_share_masked: 0.05 -> 0.01  mine.yaml:5"
    assert {line.split()[1] for line in rest[1:]} == {f"categories.{c}:" for c in ("alcohol", "gambling", "horror")}
    assert all(line.startswith("  relaxes ") for line in rest[1:])
    assert run("policy", "diff", "--forbid-relaxed", "family", "mine.yaml").exit_code == 1
    assert run("policy", "diff", "--forbid-relaxed", "moderate", "mine.yaml").exit_code == 0
    assert json.loads(run("policy", "diff", "--json", "good.yaml", "strict").stdout) == {
        "verdict": "same",
        "changes": [],
    }


def test_policy_new_writes_a_policy_that_is_its_parent_and_overwrites_nothing(run, tmp_path):
    assert run("policy", "new", "shop.yaml", "--extends", "family").exit_code == 0
    assert load_policy("shop.yaml").digest == load_policy("family").digest
    text = (tmp_path / "shop.yaml").read_text()
    (tmp_path / "all.yaml").write_text(text.replace("# categories", "categories").replace("#   ", "  "))
    assert load_policy("all.yaml").digest == load_policy("strict").digest  # what it suggests is valid
    again = run("policy", "new", "shop.yaml")
    assert again.exit_code == 1
    assert "already exists" in again.stderr
    assert (tmp_path / "shop.yaml").read_text() == text
    assert run("policy", "new", "shop.json").exit_code == 2
    assert "is not a name" in run("policy", "new", "My Shop.yaml").stderr
    assert not (tmp_path / "My Shop.yaml").exists()
    assert text.startswith("# yaml-language-server: $schema=policy.schema.json\n")
    assert json.loads((tmp_path / "policy.schema.json").read_text()) == policy_schema()
    assert run("policy", "new", "missing/shop.yaml").stderr.startswith("error: missing/shop.yaml: cannot be written")
    assert run("policy", "new", "other.yaml", "--extends", "good.yaml").exit_code == 2


def test_policy_explain_tells_where_each_value_comes_from(run):
    result = run("policy", "explain", "good.yaml")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["adapter_allowlist", "none", "default"] in rows
    assert any(
        row[:2] == ["categories.weapons.action", "enforce"] and row[2].startswith("bundled:moderate.yaml:")
        for row in rows
    )


def test_policy_explain_json(run):
    shown = json.loads(run("policy", "explain", "--json", "good.yaml").stdout)
    policy = load_policy("good.yaml")
    assert shown["digest"] == policy.digest
    assert {key: one["value"] for key, one in shown["values"].items()} == policy.values()
    assert shown["values"]["adapter_allowlist"]["file"] is None


def test_policy_schema(run):
    assert json.loads(run("policy", "schema").stdout) == policy_schema()


def test_our_own_errors_end_in_one_clean_message(run):
    result = run("policy", "explain", "strct")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.startswith("error: strct: no bundled policy has this name; did you mean 'strict'?")
    assert "Traceback" not in result.stderr


def test_any_other_exception_keeps_its_traceback(monkeypatch):
    @click.group(cls=LazyGroup, table={})
    def group() -> None:
        pass

    errors = iter([ApplyError("wrong"), ZeroDivisionError("ours")])

    @click.command()
    def fail() -> None:
        raise next(errors)

    monkeypatch.setattr(LazyGroup, "get_command", lambda self, ctx, name: fail)
    assert CliRunner().invoke(group, ["fail"]).exit_code == 1
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(group, ["fail"], catch_exceptions=False)


@pytest.fixture
def mask_file(tmp_path):
    keep = torch.ones(64, dtype=torch.bool)
    keep[[1, 5, 9]] = False
    masks = MaskSet({"transformer_blocks.0.ff:ff": keep, "context_embedder:weight": torch.eye(8, dtype=torch.bool)})
    meta = MaskMeta(
        category="weapons",
        concepts=("knife", "dagger"),
        base_model="tiny",
        family="flux1",
        fingerprint="0" * 64,
        method="by hand",
        config_sha256="0" * 64,
        licence="Apache-2.0",
        evaluation={"seeds": [1, 2]},
    )
    save_masks(tmp_path / "weapons.safetensors", masks, meta)
    return "weapons.safetensors", masks


def test_mask_show(run, mask_file):
    name, masks = mask_file
    result = run("mask", "show", name)
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["category", "weapons"] in rows
    assert ["concepts", "knife,", "dagger"] in rows
    assert ["bits", "sha256", digest(masks)] in rows
    assert ["transformer_blocks.0.ff:ff", "3", "64", "4.69%"] in rows
    assert ["context_embedder:weight", "56", "64", "87.50%"] in rows
    assert ["all", "59", "128", "46.09%"] in rows


def test_mask_show_json(run, mask_file):
    name, masks = mask_file
    shown = json.loads(run("mask", "show", "--json", name).stdout)
    assert shown["meta"]["category"] == "weapons"
    assert shown["digest"] == digest(masks)
    assert shown["sites"]["transformer_blocks.0.ff:ff"] == {"shape": [64], "masked": 3, "total": 64}


def test_mask_show_of_a_damaged_or_missing_file(run, mask_file, tmp_path):
    name, _ = mask_file
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1])
    for file, code in ((name, 1), ("missing.safetensors", 3), (".", 3)):
        result = run("mask", "show", file)
        assert result.exit_code == code
        assert result.stderr.startswith(f"error: {file}: ")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("polcy check strict", "policy"),
        ("policy chek strict", "check"),
        ("policy check strict --formt sarif", "--format"),
        ("policy explain strct", "strict"),
        ("policy new mine.yaml --categories weapon", "weapons"),
        ("train --category weapon", "weapons"),
        ("mask show weapon", "weapons"),
        ("mask card mine/wepon.safetensors", "mine/weapon.safetensors"),
        ("pack check weapon", "weapons"),
        ("serve --default strct", "strict"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(run, tmp_path, words, meant):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "weapon.safetensors").write_bytes(b"")
    result = run(*words.split())
    assert "did you mean" in result.stderr.lower()
    assert f"'{meant}'" in result.stderr


def test_results_of_new_card_and_pack_check_are_one_json_object(run, tmp_path):
    made = json.loads(run("policy", "new", "shop.yaml", "--categories", "weapons,cars", "--json").stdout)
    assert made["path"] == "shop.yaml"
    assert made["warnings"][0].startswith("cars has no bundled mask")
    card = json.loads(run("mask", "card", "weapons", "--json").stdout)
    assert card["erases"]["category"] == "weapons"
    assert card["card"] == run("mask", "card", "weapons").stdout
    (tmp_path / "odd.yaml").write_text("apiVersion: safeflux/v1\nkind: Pack\nname: odd\n")
    checked = run("pack", "check", "odd.yaml", "weapons", "none.yaml", "--json")
    report = json.loads(checked.stdout)
    assert (checked.exit_code, report["ok"]) == (3, False)
    assert [row["ok"] for row in report["packs"]] == [False, True, False]
    assert "odd.yaml:1:1" in report["packs"][0]["error"]
