"""What the README and the pages show is what happens."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.policy import load_policy
from safeflux.reference.measure import Rate

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))))
COMMANDS = sorted(
    {shown.strip() for page in PAGES for shown in re.findall(r"^ *safeflux [^#&\n]+", page, re.MULTILINE)}
)
"""Every command line of ours that the README and the pages show on a line of its own."""


def rates_of(report: Any) -> set[str]:
    """Every rate of a report, however deep it lies, as the README writes it (without n)."""
    if not isinstance(report, dict):
        return set()
    if {"hits", "n"} <= set(report):
        return {str(Rate(report["hits"], report["n"])).partition(", n")[0]}
    return set().union(*map(rates_of, report.values()))


def test_every_rate_is_in_a_report_that_the_readme_links_to():
    linked = re.findall(r"\]\((benchmarks/[^)]*\.json)\)", README)
    reported = set().union(*(rates_of(json.loads((ROOT / path).read_text())) for path in linked))
    shown = re.findall(r"\d+\.\d % \(\d+\.\d to \d+\.\d", README)
    assert len(shown) > 10
    assert set(shown) <= reported


def test_the_policy_loads_and_its_misspelling_gives_the_error_that_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (policy,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    Path("shop.yaml").write_text(policy)
    assert load_policy("shop.yaml").name == "shop"

    Path("shop.yaml").write_text(policy.replace("{action:", "{actoin:"))
    result = CliRunner().invoke(main, ["policy", "check", "shop.yaml"])
    shown = re.search(r"^    \$ safeflux policy check.*\n((?:    .*\n)+)", README, re.MULTILINE).group(1)
    expected = [line[4:].rstrip() for line in shown.splitlines()]
    got = [line.partition("    # ")[0].rstrip() for line in result.stderr.splitlines()]
    assert result.exit_code == 1
    assert got == expected


@pytest.mark.parametrize("shown", COMMANDS)
def test_every_command_that_is_shown_is_one_with_these_options(shown):
    command, context, words = main, click.Context(main), shlex.split(shown)[1:]
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        context = click.Context(command, info_name=name, parent=context)
    command.make_parser(context).parse_args(words)  # an unknown option raises


def test_commands_are_shown():
    assert len(COMMANDS) > 15
