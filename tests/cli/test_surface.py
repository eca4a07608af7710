"""Every command: the names that scripts rely on, and the examples of its help."""

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from safeflux.cli import main


def test_the_surface_of_the_commands_is_what_scripts_rely_on():
    """A change here is a change for users: say so in the changelog."""

    def options(command: click.Command) -> list[str]:
        found = []
        for parameter in command.params:
            found += parameter.opts if isinstance(parameter, click.Option) else [parameter.human_readable_name]
        return found

    surface = {
        f"{group} {name}": options(command)
        for group in ("policy", "mask", "pack", "audit", "onnx")
        for name, command in main.get_command(None, group).commands.items()
    } | {name: options(main.get_command(None, name)) for name in ("bake", "verify", "doctor")}
    assert surface == {
        "policy check": ["POLICY...", "--store", "--format", "--json"],
        "policy explain": ["POLICY", "--store", "--json"],
        "policy diff": ["OLD", "NEW", "--model", "--store", "--key", "--json", "--forbid-relaxed"],
        "policy new": ["FILE", "--categories", "--extends", "--store", "--json"],
        "policy test": ["FILE...", "--store", "--format", "--json"],
        "policy schema": [],
        "policy plan": ["POLICY", "[MODEL]", "--store", "--key", "--lock", "--json"],
        "policy lock": ["POLICY", "[MODEL]", "--store", "--key", "--out", "--overwrite", "--json"],
        "mask show": ["FILE", "--json"],
        "mask card": ["FILE", "--out", "--overwrite", "--json"],
        "mask diff": ["OLD", "NEW", "--json"],
        "mask compose": ["FILE...", "OUT", "--category", "--licence", "--overwrite", "--json"],
        "mask export": ["FILE", "OUT", "--format", "--overwrite", "--json"],
        "mask import": [
            *("FILE...", "OUT", "--model", "--category", "--concept", "--licence", "--base-model", "--threshold"),
            *("--overwrite", "--json"),
        ],
        "mask publish": ["FILE...", "OUT", "--repo", "--json"],
        "mask sign": ["FILE...", "--key", "--password", "--json"],
        "mask verify": ["FILE...", "--key", "--json"],
        "pack list": ["--json"],
        "pack check": ["PACK...", "--json"],
        "pack new": ["FILE", "--from", "--json"],
        "pack schema": [],
        "bake": [
            "SRC",
            "DST",
            "--policy",
            "--store",
            "--key",
            "--form",
            "--compact",
            "--lock",
            "--check",
            "--overwrite",
            "--json",
        ],
        "verify": ["FILE", "--policy", "--store", "--key", "--base", "--json"],
        "onnx export": ["SRC", "DST", "--policy", "--store", "--key", "--lock", "--json"],
        "doctor": ["--devices", "--json"],
        "audit export": ["FILE", "--oscal", "--last", "--plan", "--control"],
        "audit statement": ["FILE", "--line", "--predicate", "--key", "--password"],
        "audit verify": ["FILE", "--head", "--json"],
    }


def _leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that does something, by its words."""
    if not isinstance(command, click.Group):
        yield path
        return
    if command.invoke_without_command:
        yield path
    for name in command.list_commands(click.Context(command)):
        found = command.get_command(click.Context(command), name)
        assert found is not None
        yield from _leaves(found, (*path, name))


IN_A_FORM_OF_ITS_OWN = {
    *(("policy", "schema"), ("pack", "schema"), ("train", "schema")),  # JSON Schema
    *(("audit", "export"), ("audit", "statement")),  # OSCAL and in-toto, both JSON
    ("serve",),  # runs until it is stopped
}


def test_every_command_that_prints_a_result_prints_it_as_json_too():
    without = set()
    for words in _leaves(main):
        command: click.Command = main
        for word in words:
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), word) or command
        if not any("--json" in parameter.opts for parameter in command.params):
            without.add(words)
    assert without == IN_A_FORM_OF_ITS_OWN


@pytest.mark.parametrize("words", [words for words in _leaves(main) if words], ids=" ".join)
def test_every_help_ends_in_examples_of_its_command(words):
    help_text = CliRunner().invoke(main, [*words, "--help"], catch_exceptions=False).stdout
    before, found, rest = help_text.partition("  Examples:\n")
    assert found
    assert "Exit codes: " in before
    assert f"safeflux {' '.join(words)}" in rest
    for line in rest.splitlines():
        assert line.startswith(("    safeflux ", "    hf upload ", "        ")), line  # a command, or the rest of one
