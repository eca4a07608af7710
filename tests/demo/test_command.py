"""`safeflux demo`."""

import inspect
import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.cli.demo import demo, print_summary
from safeflux.demo.report import DemoReport
from safeflux.demo.run import IMAGES as DEFAULT_IMAGES
from safeflux.demo.run import run_demo
from safeflux.policy.load import load_policy


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["demo", *arguments], catch_exceptions=False)


def test_a_misspelt_policy_is_one_clean_message_and_nothing_is_written(run, tmp_path):
    (tmp_path / "bad.yaml").write_text("apiVersion: safeflux/v1\nkind: Policy\nname: mine\nextend: strict\n")
    result = run("--policy", "bad.yaml")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "bad.yaml:4:1: unknown key 'extend'; did you mean 'extends'?" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_a_folder_that_cannot_be_made_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("file", "file/out"):
        result = run("--out", out)
        assert result.exit_code == 3
        assert "file is not a folder that can be written to" in result.stderr


@pytest.mark.parametrize("arguments", [("--images", "0"), ("--seed", "-1"), ("--images", "many")])
def test_numbers_out_of_range_are_wrong_use(run, arguments):
    assert run(*arguments).exit_code == 2


def test_the_command_and_the_function_have_the_same_defaults():
    defaults = {option.name: option.default for option in demo.params}
    parameters = inspect.signature(run_demo).parameters
    assert defaults["images"] == parameters["images"].default == DEFAULT_IMAGES
    assert defaults["seed"] == parameters["seed"].default
    assert defaults["policy"] == parameters["policy"].default


def test_the_table_tells_rates_costs_and_where_the_report_is(result, capsys):
    print_summary(result, DemoReport(Path("out/report.html"), Path("out/grid.png")))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for section in result.sections:
        assert f"{section.title} {section.base} {section.guarded}" in lines
    weights, timing = result.weights, result.timing
    assert f"weights off {weights.masked:,} of {weights.total:,} ({100 * weights.share:.2f} %)" in lines
    assert f"contrast left {result.fidelity.contrast}, in kept things" in lines
    assert f"guard() {timing.guard:.1f} ms" in lines
    assert f"one step {timing.plain:.2f} ms before, {timing.guarded:.2f} ms after" in lines
    assert lines[-2:] == ["report out/report.html", "picture out/grid.png"]


@pytest.mark.slow
def test_the_command_erases_on_the_embedded_model(run, tmp_path):
    start = time.perf_counter()
    result = run("--json", "--out", "out", "--images", "8")
    print(f"safeflux demo: {time.perf_counter() - start:.1f} s", result.stdout)
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert list(figures["categories"]) == list(load_policy("strict").enforced)
    for name, category in figures["categories"].items():
        assert category["base_rate"] > 0.8
        assert category["guarded_rate"] < (0.9 if name == "style" else 0.15)  # the style is hardly erased: see its card
    kept = figures["kept"]
    assert kept["guarded_accuracy"] > kept["base_accuracy"] - 0.15  # at most one of eight
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["grid.png", "report.html"]
