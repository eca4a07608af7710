"""What the README shows is what happens."""

import re
from pathlib import Path

from click.testing import CliRunner

from safeflux.cli import main
from safeflux.policy import load_policy

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


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
