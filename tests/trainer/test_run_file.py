"""The file of a run: `train new` writes it, `--config` reads it, and each mistake is shown where it stands."""

import json
import re

import pytest
from click.testing import CliRunner
from safeflux.trainer.asked.config import make_config
from safeflux.trainer.asked.options import options_of
from safeflux.trainer.asked.run_file import load_config, run_schema

from safeflux.cli import main
from safeflux.errors import ConfigError
from safeflux.packs.load import load_packs
from safeflux.profiles.load import load_profile

PACKS = "model: flux2-klein-4b\npacks: [weapons]\n"
WORDS = (
    "model: /models/flux\ncategories:\n  weapons:\n    concepts:\n      dagger: [a dagger]\n"
    "prompts:\n  neutral: [a cat, a dog]\n  single: ['a photo of {thing}']\n"
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["train", *arguments], catch_exceptions=False)


def load(tmp_path, text, **overrides):
    (tmp_path / "mine.yaml").write_text(text)
    return load_config(tmp_path / "mine.yaml", overrides)


def planned(model, *packs):
    return make_config(options_of(load_profile(model), load_packs(packs)), "test")


def test_the_new_file_says_what_the_model_and_the_packs_say_and_so_does_all_of_it_uncommented(run, tmp_path):
    result = run("new", "run.yaml", "--model", "flux2-klein-4b", "--pack", "weapons", "--pack", "alcohol")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "run.yaml").read_text()
    expected = planned("flux2-klein-4b", "weapons", "alcohol")
    assert load_config(tmp_path / "run.yaml") == expected
    whole = re.sub(r"(?m)^# (?!yaml-)", "", text.replace("# detector: ", "## detector: "))
    assert load(tmp_path, whole) == expected
    assert load(tmp_path, whole.replace("rounds: 60", "rounds: 61")).saliency.rounds == 61
    assert json.loads((tmp_path / "safeflux-train.schema.json").read_text()) == run_schema()
    assert json.loads(run("schema").stdout) == run_schema()
    assert "safeflux train --config run.yaml --dry-run" in result.stdout
    told = json.loads(run("new", "again.yaml", "--json").stdout)
    assert told == {
        "path": "again.yaml",
        "schema": "safeflux-train.schema.json",
        "model": "flux2-klein-4b",
        "packs": ["weapons"],
    }
    again = run("new", "run.yaml")
    assert (again.exit_code, (tmp_path / "run.yaml").read_text()) == (1, text)
    assert run("new", "run.json").exit_code == 2
    assert "no bundled pack has this name" in run("new", "other.yaml", "--pack", "weapns").stderr
    assert run("--seed", "3", "new", "other.yaml").exit_code == 2
    assert not (tmp_path / "other.yaml").exists()


def test_a_file_changes_single_options_of_its_packs_and_model(tmp_path):
    changes = "saliency: {rounds: 7}\nprompts: {erase_pairs: 9}\nheight: 256\ncall: {guidance_scale: 2.0}\n"
    changed, base = load(tmp_path, PACKS + changes), planned("flux2-klein-4b", "weapons")
    assert (changed.saliency.rounds, changed.saliency.bits_off) == (7, base.saliency.bits_off)
    assert changed.prompts == base.prompts.model_copy(update={"erase_pairs": 9})
    assert (changed.height, changed.width, changed.dtype) == (256, base.width, "bfloat16")
    assert changed.call == base.call | {"guidance_scale": 2.0}
    assert load(tmp_path, PACKS, model="flux1-dev", seed=3).guidance == planned("flux1-dev", "weapons").guidance
    assert load(tmp_path, WORDS).categories["weapons"].concepts == {"dagger": ("a dagger",)}
    assert load(tmp_path, WORDS.replace("/models/flux", "flux1-dev")).model == load_profile("flux1-dev").source


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (PACKS + "saliancy: {rounds: 3}\n", "3:1", "unknown key 'saliancy'; did you mean 'saliency'?"),
        (PACKS + "saliency: {round: 3}\n", "3:12", "unknown key 'round'; did you mean 'rounds'?"),
        (PACKS + "gates: {lambd: 3}\n", "3:9", "unknown key 'lambd'; did you mean 'lambda'?"),
        (PACKS + "saliency: {beta: atuo}\n", "3:18", "saliency.beta: 'atuo' is not known; did you mean 'auto'?"),
        (PACKS + "saliency: {beta: -1}\n", "3:18", "expected a number greater than or equal to 0, got -1"),
        (PACKS + "recompute: blockk\n", "3:12", "recompute: 'blockk' is not known; did you mean 'block'?"),
        (PACKS + "kinds: [ff, weights]\n", "3:13", "kinds.1: 'weights' is not known; did you mean 'weight'?"),
        (PACKS + "batch: 0\n", "3:8", "batch: expected a number greater than 0, got 0"),
        (PACKS + "batch: 1\nbatch: 2\n", "4:1", "duplicate key 'batch'; the first one is on line 3"),
        (PACKS + "height: [\n", "3:9", "this '[' is never closed"),
        (PACKS + "preserve_terms: {bank: 1}\n", "3:24", "preserve_terms.bank: expected 0"),
        (PACKS + WORDS.partition("\n")[2], "2:8", "expected either packs or categories, got both"),
        ("model: flux1-dev\n", "1:1", "expected packs, or categories and prompts; `safeflux train new` writes"),
        (WORDS.replace("thing}", "thng}"), "8:12", "no slot fills {thng}; there are thing"),
        (WORDS.replace("  neutral: [a cat, a dog]\n", ""), "7:3", "expected prompts.neutral"),
        (
            WORDS.replace("    concepts", "    anchors: {daggr: a pen}\n    concepts"),
            "4:22",
            "categories.weapons.anchors.daggr: no such concept; did you mean 'dagger'?",
        ),
        (WORDS.replace("    concepts", "    slot: stile\n    concepts"), "4:11", "expected one of thing, got 'stile'"),
        (
            WORDS.replace("    concepts", "    trajectory: {holdsteps: 1}\n    concepts"),
            "4:18",
            "unknown key 'holdsteps'; did you mean 'hold_steps'?",
        ),
    ],
)
def test_each_mistake_is_shown_with_line_column_excerpt_and_suggestion(tmp_path, text, place, message):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    first, excerpt, caret = str(caught.value).splitlines()
    assert first.startswith(f"{tmp_path / 'mine.yaml'}:{place}: ")
    assert message in first
    line, column = map(int, place.split(":"))
    assert excerpt == f"  {line} | {text.splitlines()[line - 1]}"
    assert caret.index("^") == len(f"  {line} | ") + column - 1


def test_all_mistakes_are_told_at_once_and_a_missing_file_is_said(run, tmp_path):
    (tmp_path / "mine.yaml").write_text(PACKS + "batch: 0\nstepps: 3\n")
    result = run("--config", "mine.yaml")
    assert result.exit_code == 1
    assert re.findall(r"^(?:error: )?mine\.yaml:(\d+):", result.stderr, re.MULTILINE) == ["3", "4"]
    missing = run("--config", "none.yaml")
    assert (missing.exit_code, "none.yaml: does not exist" in missing.stderr) == (3, True)


def test_editors_get_every_option_with_its_meaning():
    schema = run_schema()
    assert schema["$schema"].endswith("draft-07/schema#")
    assert schema["additionalProperties"] is False
    assert "Sampling steps of the training rollout." in json.dumps(schema["properties"]["steps"])
    parts = [schema, *schema["definitions"].values()]
    missing = [
        key
        for part in parts
        for key, value in part.get("properties", {}).items()
        if "description" not in value and "allOf" not in value and "$ref" not in value
    ]
    assert missing == []
