"""What the README shows is what happens."""

import json
import re
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from safeflux.cli import main
from safeflux.policy import load_policy
from safeflux.reference.measure import Rate

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
