"""What a shell completes: commands without importing them, policies, categories and files."""

import os
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from safeflux.cli import main
from tests.helpers.fresh import modules_after


def completed(words: str) -> list[str]:
    """What bash is given for the last of some words, as its completion function asks for it."""
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1), "_SAFEFLUX_COMPLETE": "bash_complete"}
    run = CliRunner(env=asked).invoke(main, prog_name="safeflux")
    assert run.stderr == ""
    return run.stdout.split()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.yaml").write_text("kind: Policy\n")
    (tmp_path / "shelves").mkdir()
    (tmp_path / "shop.txt").write_text("")
    (tmp_path / "alcohol-2.safetensors").write_text("")
    (tmp_path / "st[r]ange.yaml").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("safeflux po", ["plain,policy"]),
        ("safeflux policy sc", ["plain,schema"]),
        ("safeflux policy explain mod", ["plain,moderate"]),
        ("safeflux policy explain sh", ["plain,shelves/", "plain,shop.yaml"]),
        ("safeflux policy explain st", ["plain,strict", "plain,strict-things", "plain,st[r]ange.yaml"]),
        ("safeflux policy explain st[", ["plain,st[r]ange.yaml"]),
        ("safeflux bake --policy fam", ["plain,family"]),
        ("safeflux eval --policy fam", ["plain,family"]),
        ("safeflux bake sho", ["file,sho"]),
        ("safeflux policy new x.yaml --categories weapons,al", ["plain,weapons,alcohol"]),
        ("safeflux train --category tob", ["plain,tobacco"]),
        ("safeflux policy explain nothing-like-it", ["file,nothing-like-it"]),
        ("safeflux mask show alc", ["plain,alcohol", "plain,alcohol-things", "plain,alcohol-2.safetensors"]),
        ("safeflux eval --mask gam", ["plain,gambling", "plain,gambling-things"]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_the_shell_is_told_what_fits(words, expected):
    assert completed(words) == expected


COMPLETE = {
    "bash": """
eval "$(_SAFEFLUX_COMPLETE=bash_source safeflux)"
COMP_WORDS=($LINE) COMP_CWORD=$(($(wc -w <<< "$LINE") - 1))
_safeflux_completion safeflux
echo "${COMPREPLY[@]}"
""",
    "fish": """
_SAFEFLUX_COMPLETE=fish_source safeflux | source
complete -C "$LINE" | string replace -r '\\t.*' ''
""",
}
"""What a shell does for a user who presses Tab, by its own completion."""


@pytest.mark.parametrize("shell", [shell for shell in COMPLETE if shutil.which(shell)])
def test_the_shell_itself_completes(shell, folder):
    command = folder / "safeflux"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m safeflux "$@"\n')
    command.chmod(0o755)
    for line, expected in (("safeflux po", "policy"), ("safeflux policy explain shop", "shop.yaml")):
        environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "LINE": line, "HOME": str(folder)}
        done = subprocess.run([shell, "-c", COMPLETE[shell]], env=environment, capture_output=True, text=True)
        assert (done.stdout.split(), done.stderr) == ([expected], ""), shell


def test_completing_a_command_imports_none():
    code = (
        "import click, safeflux.cli as cli\n"
        "found = cli.main.shell_complete(click.Context(cli.main), '')\n"
        "assert {'policy', 'bake', 'train'} <= {item.value for item in found}, found"
    )
    loaded, _ = modules_after(code)
    assert not {name for name in loaded if name.startswith("safeflux.cli.")} - {
        f"safeflux.cli.{name}" for name in ("_lazy", "_logs")
    }
