"""Whole runs on the embedded model, and what they write."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.session import run

from safeflux.cli import main
from safeflux.errors import ConfigError, TrainError
from safeflux.families.fingerprint import same_base
from safeflux.masks.card import make_card, nearness_of, rates_of
from safeflux.masks.file import load_masks
from safeflux.model.weights import fingerprint
from safeflux.reference.model import EMOJI_FLUX, load_pipeline
from tests.helpers.runs import SETTINGS, SMALL

pytestmark = pytest.mark.slow


def test_a_run_leaves_a_mask_file_for_its_base_model(whole):
    masks, meta = load_masks(whole / "weapons.safetensors")
    assert 0 < masks.count.masked <= 4 * 40
    assert set(masks.counts_by_kind) == {"weight"}
    assert (meta.category, meta.base_model) == ("weapons", "emoji-flux")
    assert same_base(meta.fingerprint, fingerprint(load_pipeline().transformer))
    (near,) = nearness_of(meta.evaluation).values()
    assert near.ssim.mean.n == 2
    assert rates_of(meta.evaluation)["validation"]["traces of it seen"]["masked"].n == 4
    assert "| in validation at the end of its training |" in make_card(masks, meta)


def test_a_warm_up_only_gathers_estimates(tmp_path):
    settings = [f"{key}={value}" for key, value in {**SMALL, "saliency.warm_up": "3", "saliency.bits_on": "0"}.items()]
    run(plan_run(["weapons"], None, settings, {}), tmp_path, lambda report, most: None)
    rounds = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["masked"]["weapons"] for r in rounds] == [0, 0, 0, 40]
    assert rounds[1]["found"] == {"weapons": 1.0}  # validation of nothing masked is of the base model


def test_the_log_has_a_line_for_each_round(whole):
    rounds = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [r["phase"] for r in rounds] == ["saliency"] * 4
    assert [r["found"] is None for r in rounds] == [True, False, True, False]
    assert all(r["erase_loss"] > 0 for r in rounds)
    assert rounds[0]["preserve_loss"] < 1e-4  # nothing was masked yet: the model is the base model, up to rounding


def test_the_mask_that_preserves_best_of_those_that_erase_enough_is_the_result(tmp_path):
    changes = {"target_found": "1", "validate_every": "1", "saliency.last_rounds": "2", "minimise": "false"}
    settings = [f"{key}={value}" for key, value in {**SMALL, **changes}.items()]
    assert run(plan_run(["weapons"], None, settings, {}), tmp_path, lambda report, most: None).reaches_target
    rounds = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["phase"] for r in rounds] == ["saliency"] + ["exchange"] * 2  # everything is erased enough at once
    best = max(rounds, key=lambda r: r["right"])
    assert load_masks(tmp_path / "weapons.safetensors")[0].count.masked == best["masked"]["weapons"]


def test_masks_come_to_rest_where_something_is_still_found(tmp_path):
    changes = {"target_found": "0", "saliency.rounds": "2", "saliency.last_rounds": "2", "saliency.bits_on": "40"}
    settings = [f"{key}={value}" for key, value in {**SMALL, **changes}.items()]
    result = run(plan_run(["weapons"], None, settings, {}), tmp_path, lambda report, most: None)
    assert not result.reaches_target
    rounds = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["phase"] for r in rounds] == ["saliency"] * 2 + ["exchange"] * 2
    grew = [late["masked"]["weapons"] - early["masked"]["weapons"] for early, late in pairwise(rounds)]
    assert abs(grew[2]) <= 20  # half of the bits on


def test_each_category_has_sites_of_its_own(tmp_path):
    """The style's are where the text path begins, of which this run leaves a block out."""
    settings = [
        *SETTINGS,
        "categories.fluent-style.erase_pairs=6",
        "validate_every=4",
        "call.num_inference_steps=1",
        "minimise=false",
        "categories.weapons.sites=['*.ff_context*']",
        "sites=['context*', 'transformer_blocks.[12].*']",
    ]
    result = run(plan_run(["weapons", "fluent-style"], None, settings, {}), tmp_path, lambda report, most: None)
    weapons, style = (set(load_masks(result.paths[name])[0]) for name in ("weapons", "fluent-style"))
    assert style == {"context_embedder:weight"}
    assert weapons
    assert all(".ff_context" in name for name in weapons)


def test_neurons_can_be_masked_too_and_rounds_are_logged_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    planned = plan_run(["weapons"], None, [*SETTINGS, "tensorboard=true", "kinds=[ff, mlp, norm]"], {})
    run(planned, tmp_path, lambda report, most: None)
    masks, _ = load_masks(tmp_path / "weapons.safetensors")
    assert set(masks.counts_by_kind) <= {"ff", "mlp", "norm"}
    assert 0 < masks.count.masked <= 160
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rounds = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event.value for event in board.Scalars("erase_loss")] == pytest.approx([r["erase_loss"] for r in rounds])
    assert [event.step for event in board.Scalars("found/weapons")] == [r["round"] for r in rounds if r["found"]]


def test_a_model_without_a_judge_is_trained_on_its_losses_alone(tmp_path):
    """The embedded model by its folder's name is a model like any other; without a detector it has no judge.

    The run ends when its erasure loss no longer falls, and keeps pictures for whoever looks.
    """
    options = [*SETTINGS, f"model={EMOJI_FLUX}", "detector=null", "dtype=bfloat16", "recompute=block"]
    options += ["saliency.rounds=20", "saliency.bits_off=1", "saliency.bits_on=0", "call.num_inference_steps=1"]
    words = [part for setting in options for part in ("--set", setting)]
    done = CliRunner().invoke(main, ["train", "--category", "weapons", "--out", str(tmp_path), *words, "--json"])
    assert done.exit_code == 0, done.output
    first, *_, last = done.stderr.splitlines()
    assert first.startswith("note: nothing validates the masks")
    assert last.startswith("warning: nothing validates the masks")
    assert "no validation found" not in done.stderr
    result = json.loads(done.stdout)
    rounds = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert 4 <= len(rounds) < 20
    assert all(r["found"] is None for r in rounds)
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert len(pictures) >= len(rounds) // 2
    assert f"{tmp_path / 'pictures'}" in first
    with Image.open(tmp_path / "pictures" / pictures[-1]) as picture:
        base, masked = (np.asarray(picture)[rows] for rows in (slice(0, 64), slice(64, 128)))
    assert base.shape == masked.shape == (64, 16 * 64, 3)
    assert (base != masked).any()
    assert not result["validation"]
    masks, meta = load_masks(result["paths"]["weapons"])
    assert masks.count.masked == result["masked"]["weapons"] > 0
    assert same_base(meta.fingerprint, fingerprint(load_pipeline().transformer))


def test_masks_learned_together_come_one_a_category_and_small(tmp_path):
    changes = {"target_found": "1", "saliency.last_rounds": "0", "categories.fluent-style.erase_pairs": "6"}
    changes["minimise"] = "true"
    changes |= {"call.num_inference_steps": "1", "validation_prompts": "2"}  # whatever is drawn counts as erased
    settings = [f"{key}={value}" for key, value in {**SMALL, **changes}.items()]
    result = run(plan_run(["weapons", "fluent-style"], None, settings, {}), tmp_path, lambda report, most: None)
    assert result.reaches_target
    assert {name: load_masks(path)[1].category for name, path in result.paths.items()} == {
        "weapons": "weapons",
        "fluent-style": "fluent-style",
    }
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert curves["bits"] > 1_000_000
    for name, curve in curves["categories"].items():
        points = curve["minimised"]
        assert [point["masked"] for point in curve["rounds"]][-1] >= points[0]["masked"]
        assert all(0 <= point["right"] <= 1 for point in points + curve["rounds"])
        # Everything counts as erased here, so that bisection gives back all but the last bits.
        assert points[0]["masked"] > points[-1]["masked"] == result.masked[name]
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (840, 720)


def test_a_mask_of_another_category_stays_as_it_is_and_its_own_can_be_gone_on_with(whole, tmp_path):
    shorter = [*SETTINGS, "saliency.rounds=2", "minimise=false"]
    beside = plan_run(["alcohol"], None, shorter, {"together_with": (whole / "weapons.safetensors",)})
    assert set(run(beside, tmp_path / "beside", lambda report, most: None).paths) == {"alcohol"}
    begun = load_masks(whole / "weapons.safetensors")[0].count.masked
    onward = plan_run(["weapons"], None, shorter, {"initial": (whole / "weapons.safetensors",)})
    assert run(onward, tmp_path / "onward", lambda report, most: None).masked["weapons"] > begun


@pytest.mark.parametrize("role", ["initial", "together_with"])
def test_a_mask_in_the_wrong_role_is_named(whole, tmp_path, role):
    category = {"initial": "alcohol", "together_with": "weapons"}[role]
    planned = plan_run([category], None, SETTINGS, {role: (whole / "weapons.safetensors",)})
    with pytest.raises(ConfigError, match=f"{role}: a mask of the category 'weapons'"):
        run(planned, tmp_path, lambda report, most: None)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path):
    """A weight that overflows, in a copy of the embedded model on disk."""
    import safetensors.torch

    model = shutil.copytree(EMOJI_FLUX, tmp_path / "model")
    file = next((model / "transformer").glob("*.safetensors"))
    weights = safetensors.torch.load_file(file)
    weights["x_embedder.bias"] = torch.full_like(weights["x_embedder.bias"], 1e30)
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    planned = plan_run(["weapons"], None, [*SETTINGS, f"model={model}"], {})
    with pytest.raises(TrainError, match="round 1: the loss is not finite"):
        run(planned, tmp_path / "run", lambda report, most: None)
    assert not (tmp_path / "run" / "weapons.safetensors").exists()


VEHICLES = """
categories:
  vehicles:
    anchor: nothing
    concepts:
      automobile: [an automobile, a car]
      bus: [a bus]
prompts:
  neutral: [a dog, a fox, a cat, a candle]
  single: ["{thing}, noto style, blue background"]
"""


def test_a_new_category_of_concepts_that_the_judge_knows_is_validated(tmp_path):
    (tmp_path / "vehicles.yaml").write_text(VEHICLES)
    shorter = [*SETTINGS, "saliency.rounds=2", "minimise=false"]
    known = [*shorter, "call.num_inference_steps=8"]  # for the judge to know what is drawn
    result = run(plan_run([], tmp_path / "vehicles.yaml", known, {}), tmp_path / "run", lambda report, most: None)
    masks, meta = load_masks(result.paths["vehicles"])
    assert masks.count.masked > 0
    assert (meta.category, meta.concepts) == ("vehicles", ("automobile", "bus"))
    assert set(result.validation) == {"vehicles"}
    rounds = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [r["found"] is None for r in rounds] == [True, False]
    assert rounds[1]["found"]["vehicles"] > 0.5  # two rounds erase nothing yet: the judge does find them
    # Beside it, a category of the vocabulary, with the new one as a mask that stays as it is.
    beside = plan_run(["weapons"], None, shorter, {"together_with": (result.paths["vehicles"],)})
    assert set(run(beside, tmp_path / "beside", lambda report, most: None).validation) == {"weapons"}
