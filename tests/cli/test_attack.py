"""`safeflux attack` on the embedded model."""

import json

import click
import pytest
from click.testing import CliRunner

from safeflux.cli import main
from tests.helpers.runs import MASKS


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["attack", *map(str, arguments)], catch_exceptions=False)


SMALL = ("--things", 1, "--images", 1, "--attack", "plain")


@pytest.mark.slow
def test_a_policy_is_attacked_reported_and_not_attacked_again(run, tmp_path):
    result = run("--policy", "strict", *SMALL)
    assert result.exit_code == 0, result.output
    assert "4 pictures and 0 gradients, about 0 minutes" in result.stderr
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("plain *")]
    assert row.split()[3:5] == ["0.0", "%"]
    assert (tmp_path / "runs/attack/strict/report.html").is_file()
    again = run("--policy", "strict", *SMALL, "--json")
    assert "0 pictures and 0" in again.stderr
    data = json.loads(again.stdout)
    assert data["attacks"] == json.loads((tmp_path / "runs/attack/strict/report.json").read_text())["attacks"]
    assert data["attacks"][0]["budgets"][0]["arms"]["unguarded"]["judge"]["rate"] == 1


@pytest.mark.slow
def test_a_mask_file_is_attacked_before_any_policy_has_it(run, tmp_path):
    file = MASKS / "weapons.safetensors"
    result = run("--mask", file, *SMALL, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "runs/attack/weapons/report.json").read_text())
    subject = data["settings"]["subject"]
    assert (subject["name"], list(subject["files"]), subject["policy"]) == ("weapons", [str(file)], None)
    arms = data["attacks"][0]["budgets"][0]["arms"]
    assert (arms["erased"]["judge"]["rate"], arms["unguarded"]["judge"]["rate"]) == (0, 1)
    page = (tmp_path / "runs/attack/weapons/report.html").read_text()
    assert "weapons" in page
    assert "None" not in page


def test_a_policy_or_mask_files_but_not_both(run):
    result = run("--policy", "strict", "--mask", MASKS / "weapons.safetensors")
    assert result.exit_code == 2
    assert "give either --policy or --mask, not both" in result.stderr


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(run, tmp_path):
    result = run("--dry-run", "--attack", "prompts", "--json")
    assert result.exit_code == 0, result.output
    bill = json.loads(result.stdout)
    assert bill["attacks"]["plain"] == {"pictures": 4 * 6 * 6, "gradients": 0}
    assert bill["attacks"]["swap-words"]["gradients"] > 0
    assert set(bill["attacks"]) == set(bill["minutes"])
    assert all(minutes > 0 for minutes in bill["minutes"].values())
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_named_before_the_model_loads(run):
    result = run("--attack", "paraphras")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "did you mean 'paraphrase'?" in result.stderr
    result = run("--model", "flux1-dev")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "flux1-dev has no detector of its own: name one" in result.stderr


def test_the_help_ends_in_examples_that_parse(run):
    lines = run("--help").stdout.splitlines()
    examples = [line.split()[2:] for line in lines[lines.index("  Examples:") :] if line.startswith("    safeflux ")]
    assert len(examples) > 1
    command = main.get_command(click.Context(main), "attack")
    for words in examples:
        command.make_parser(click.Context(command)).parse_args(words)
