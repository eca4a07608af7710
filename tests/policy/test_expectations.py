"""Expectations of policies: each is told with its place, and nothing passes that was not looked at."""

import json

import pytest
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.masks.store import open_store
from safeflux.policy.expectations import EXAMPLE
from safeflux.policy.expectations import run_policy_test as run_policy_test_in
from safeflux.policy.yaml_reader import PolicyFileError

HEAD = EXAMPLE[: EXAMPLE.index("policy: ")]
SHOP = "apiVersion: safeflux/v1\nkind: Policy\nname: shop\nextends: moderate\nbudget: {max_share_masked: 0.01}\n"
LOOSE = """\
apiVersion: safeflux/v1
kind: Policy
name: loose
adapters: allow
categories:
  weapons: {action: warn, masks: [weapons]}
"""
ALL = """\
policy: shop.yaml
expect:
  enforced: [weapons, drugs]
  adapters: allowlist
  max_share_masked: 0.01
  as_tight_as: moderate
"""


def run_policy_test(path):
    return run_policy_test_in(path, open_store())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shop.yaml").write_text(SHOP)
    (tmp_path / "loose.yaml").write_text(LOOSE)
    (tmp_path / "shop.test.yaml").write_text(HEAD + ALL)
    (tmp_path / "loose.test.yaml").write_text(HEAD + ALL.replace("shop", "loose"))
    return tmp_path


def test_what_holds_is_told_for_each_expectation(folder):
    outcomes = run_policy_test(folder / "shop.test.yaml")
    assert [outcome.fault for outcome in outcomes] == [None] * 6
    assert [outcome.origin.line for outcome in outcomes] == [5, 5, 6, 7, 8, 3]


def test_the_example_of_the_help_is_one(folder):
    (folder / "example.yaml").write_text(EXAMPLE)
    faults = [outcome.fault for outcome in run_policy_test(folder / "example.yaml")]
    assert [bool(fault) for fault in faults] == [False, True, *[False] * 7]  # shop does not enforce alcohol
    assert EXAMPLE in CliRunner().invoke(main, ["policy", "test", "--help"]).stdout.replace("\n  ", "\n")


def test_what_fails_says_what_the_policy_says_and_where(folder):
    weapons, drugs, adapters, share, tight, _ = run_policy_test(folder / "loose.test.yaml")
    loose = folder / "loose.yaml"
    assert weapons.fault == f"it says warn ({loose}:6)"
    assert drugs.fault.startswith("it has no such category; known: weapons")
    assert adapters.fault == f"it says allow ({loose}:4)"
    assert share.fault == "it allows 1.0 (default)"
    for change in ("adapters: deny -> allow", "budget.max_share_masked", "weapons.action: enforce -> warn", "tobacco"):
        assert change in tight.fault
    assert str(adapters) == f"FAILED  {folder / 'loose.test.yaml'}:6: adapters allowlist: {adapters.fault}"


def test_the_command_exits_1_where_one_fails(folder):
    good, bad = str(folder / "shop.test.yaml"), str(folder / "loose.test.yaml")
    assert CliRunner().invoke(main, ["policy", "test", good]).exit_code == 0
    result = CliRunner().invoke(main, ["policy", "test", good, bad])
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "7 of 12 hold"
    told = json.loads(CliRunner().invoke(main, ["policy", "test", "--json", bad]).stdout)
    assert told["ok"] is False
    assert told["outcomes"][2] | {"fault": ""} == {
        "file": bad,
        "line": 6,
        "expected": "adapters allowlist",
        "fault": "",
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "policy: shop.yaml\nexpect: {}\n",
            r":4:1: expected at least one of enforced, not_enforced, erases",
        ),
        ("policy: shop.yaml\nexpect: {enforce: [weapons]}\n", r":4:10: unknown key 'enforce'; did you mean 'enforced'"),
        ("policy: shop.yaml\nexpect: {adapters: none}\n", r":4:20: expect.adapters: 'none' is not known"),
        ("policy: shop.yaml\nexpect: {max_share_masked: 7}\n", r":4:28: expect.max_share_masked"),
        ("policy: missing.yaml\nexpect: {adapters: deny}\n", r"missing.yaml.*does not exist"),
        ("policy: strict\nexpect: {as_tight_as: strct}\n", r"strct: no bundled policy"),
    ],
)
def test_a_file_that_says_nothing_sound_is_refused(folder, text, told):
    (folder / "bad.test.yaml").write_text(HEAD + text)
    with pytest.raises(PolicyFileError, match=told):
        run_policy_test(folder / "bad.test.yaml")


MORE = """\
policy: mine.yaml
expect:
  not_enforced: [alcohol, weapons]
  erases: [weapons, dagger, cigarette, daggr]
"""
HEAD_OF_POLICY = "apiVersion: safeflux/v1\nkind: Policy\nname: mine\n"


def test_what_is_not_enforced_and_what_the_files_erase(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        HEAD_OF_POLICY + "categories:\n  weapons: {masks: [weapons]}\n  tobacco: {action: audit, masks: [tobacco]}\n"
    )
    (tmp_path / "mine.test.yaml").write_text(HEAD + MORE)
    alcohol, weapons, *erased, own = run_policy_test(tmp_path / "mine.test.yaml")
    assert (alcohol.fault, own.fault) == (None, None)
    assert weapons.fault == "it is (default)"
    assert [outcome.fault and outcome.fault[:34] for outcome in erased] == [
        None,
        None,
        "no enforced mask does; known: bomb",  # the mask of cigarettes is not enforced
        "no enforced mask does; did you mea",
    ]


def test_a_mask_that_erases_something_else_fails_the_test(tmp_path):
    body = "categories:\n  alcohol: {masks: [tobacco]}\n  mine: {masks: [nowhere]}\n"
    (tmp_path / "mine.yaml").write_text(HEAD_OF_POLICY + body)
    (tmp_path / "mine.test.yaml").write_text(
        HEAD + "policy: mine.yaml\nexpect: {enforced: [alcohol], erases: [beer]}\n"
    )
    enforced, erased, own = run_policy_test(tmp_path / "mine.test.yaml")
    assert enforced.fault is None
    assert erased.fault == "no store has the masks nowhere (--store)"
    assert "mine.yaml:5: category 'alcohol': mask set 'tobacco' erases tobacco (cigarette), not alcohol" in own.fault
    result = CliRunner().invoke(main, ["policy", "test", str(tmp_path / "mine.test.yaml")])
    assert result.exit_code == 1


def test_a_slip_in_what_must_not_be_enforced_fails_and_a_name_of_ones_own_does_not(folder):
    test = folder / "not.test.yaml"
    test.write_text(f"{HEAD}policy: shop.yaml\nexpect:\n  not_enforced: [gambing, horror, our-brand]\n")
    faults = [outcome.fault for outcome in run_policy_test(test)]
    assert faults == ["no category has this name; did you mean 'gambling'?", None, None, None]


def test_a_file_for_another_command_is_one_error(folder):
    for command, name, expected in (
        ("test", "shop.yaml", "shop.yaml:2:7: kind: expected a PolicyTest, got a Policy; `safeflux policy check`"),
        ("check", "shop.test.yaml", "test.yaml:2:7: kind: expected a Policy, got a PolicyTest; `safeflux policy test`"),
    ):
        run = CliRunner().invoke(main, ["policy", command, str(folder / name)])
        assert (run.exit_code, expected in run.stderr, run.stderr.count("\n")) == (1, True, 3), run.stderr
