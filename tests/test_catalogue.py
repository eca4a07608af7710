"""The shipped masks: made by the commands that are told, for the targets that are known, with cards that agree."""

from pathlib import Path

import pytest
from safeflux.trainer.run.checkpoint import config_digest
from safeflux.trainer.run.planning import plan_run

from benchmarks.make_catalogue import STAGES, TAKEN, Stage, command
from safeflux.cli.train.group import train
from safeflux.masks.file import load_masks
from safeflux.model.guard import guard
from safeflux.policy.load import bundled_policies
from safeflux.rates import Rate
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import vocabulary

MASKS = Path(__file__).parent.parent / "policies" / "masks" / "emoji-flux"
TAKES_THINGS = MASKS.with_name("emoji-flux-things")


def test_there_is_a_mask_and_a_card_for_every_target():
    for suffix in ("safetensors", "md"):
        assert {path.stem for path in MASKS.glob(f"*.{suffix}")} == set(vocabulary().targets)


def test_the_masks_have_the_configuration_of_the_commands_that_made_them():
    made = {category: (name, categories, *rest) for name, categories, *rest in STAGES for category in categories}
    assert set(made) == set(vocabulary().targets)
    for category, stage in made.items():
        assert load_masks(MASKS / f"{category}.safetensors")[1].config_sha256 == _digest(stage)


def test_masks_that_take_the_thing_go_on_from_those_that_take_the_word():
    paths = sorted(TAKES_THINGS.glob("*.safetensors"))
    assert {path.stem for path in paths} == {f"{category}-things" for category in TAKEN[1]}
    for path in paths:
        masks, meta = load_masks(path)
        assert path.stem == f"{meta.category}-things"
        assert meta.config_sha256 == _digest(TAKEN)
        assert any(site.endswith(":image") for site in masks)
        assert meta.fingerprint == load_masks(MASKS / f"{meta.category}.safetensors")[1].fingerprint


def _digest(stage: Stage) -> str:
    """Of the configuration of the command that makes a stage."""
    verb, *arguments = command(Path("runs"), *stage)
    given = train.make_context(verb, arguments).params
    starts = {"initial": given["initial"], "together_with": given["together_with"]}
    return config_digest(plan_run(given["categories"], None, given["settings"], starts))


def test_every_card_tells_the_figures_inside_its_mask():
    for path in MASKS.glob("*.safetensors"):
        masks, meta = load_masks(path)
        card = path.with_suffix(".md").read_text()
        assert f"{masks.count.masked:,} of " in card
        alone, among = meta.evaluation["alone"], meta.evaluation["with all masks"]
        assert set(alone) == set(among) > {"everything else right"}
        for row in alone:
            rates = (alone[row]["base"], alone[row]["masked"], among[row]["masked"])
            cells = " | ".join(str(Rate(rate["hits"], rate["n"])) for rate in rates)
            assert f"| {row} | {cells} |" in card


@pytest.mark.parametrize("name", bundled_policies())
def test_every_bundled_policy_can_be_applied(name):
    pipe = load_pipeline()
    with guard(pipe, name) as handle:
        assert handle.verify().state.name == "GUARDED"
