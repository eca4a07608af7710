"""Whole runs on the embedded model: what they write, and that a run that was cut off goes on with the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safeflux.trainer.session import plan_run, run

from safeflux.cli import main
from safeflux.errors import ConfigError, ModelError, TrainError
from safeflux.fingerprint import same_base
from safeflux.maskfile import load_masks
from safeflux.reference.model import load_pipeline
from safeflux.weights import fingerprint

SMALL = {
    "batch": "2",
    "steps": "1",
    "prompts.erase_pairs": "6",
    "prompts.preserve_pairs": "8",
    "validation_prompts": "4",
    "validate_every": "2",
    "saliency.rounds": "4",
    "saliency.warm_up": "0",
    "saliency.bits_off": "40",
    "saliency.bits_on": "10",
    "saliency.last_rounds": "0",
    "saliency.erase_batches": "1",
    "saliency.preserve_batches": "1",
    "target_found": "0",
}
SETTINGS = [f"{key}={value}" for key, value in SMALL.items()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a small run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run(plan_run(["weapons"], None, SETTINGS, {}), folder, lambda report, most: None)
    return folder


def test_a_run_leaves_a_mask_file_for_its_base_model(whole):
    masks, meta = load_masks(whole / "weapons.safetensors")
    assert 0 < masks.count.masked <= 4 * 40
    assert set(masks.counts_by_kind) == {"weight"}
    assert (meta.category, meta.base_model) == ("weapons", "emoji-flux")
    assert same_base(meta.fingerprint, fingerprint(load_pipeline().transformer))


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
    changes = {"target_found": "1", "validate_every": "1", "saliency.last_rounds": "4", "minimise": "false"}
    settings = [f"{key}={value}" for key, value in {**SMALL, **changes}.items()]
    assert run(plan_run(["weapons"], None, settings, {}), tmp_path, lambda report, most: None).reaches_target
    rounds = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["phase"] for r in rounds] == ["saliency"] + ["exchange"] * 4  # everything is erased enough at once
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


def _heed_key_presses() -> None:
    """A shell's background jobs are started deaf to SIGINT, and so are these tests then, and what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_cut_off_goes_on_with_the_same_bits(whole, tmp_path, kill):
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [sys.executable, "-m", "safeflux", "train", "--category", "weapons", "--out", str(tmp_path), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_key_presses)
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, kill)
    errors = process.communicate()[1]
    assert process.returncode == (130 if kill is signal.SIGINT else -signal.SIGKILL)
    assert kill is signal.SIGKILL or "goes on from the last round" in errors
    assert not (tmp_path / "weapons.safetensors").exists()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "warning: no validation found every category in at most 0.0 %" in done.stderr
    assert (tmp_path / "weapons.safetensors").read_bytes() == (whole / "weapons.safetensors").read_bytes()


def test_a_seed_of_zero_overrides_the_configuration_too(whole, tmp_path):
    run_folder, config = tmp_path / "run", tmp_path / "other-seed.yaml"
    shutil.copytree(whole, run_folder)
    config.write_text((whole / "config.yaml").read_text().replace("\nseed: 0\n", "\nseed: 5\n"))
    command = ["train", "--config", str(config), "--out", str(run_folder)]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1
    assert "another configuration" in refused.stderr
    assert CliRunner().invoke(main, [*command, "--seed", "0"]).exit_code == 0


def test_a_folder_of_another_run_is_left_alone(whole):
    before = (whole / "checkpoint.pt").read_bytes()
    with pytest.raises(ConfigError, match=r"another configuration.*--out"):
        run(plan_run(["alcohol"], None, SETTINGS, {}), whole, lambda report, most: None)
    assert (whole / "checkpoint.pt").read_bytes() == before


GATES = {
    "method": "gates",
    "kinds": "[ff, mlp, norm]",
    "gates.rounds": "3",
    "gates.steps_per_round": "2",
    "gates.lr": "1",
    "gates.initial": "2",
}


def test_gates_that_were_cut_off_go_on_with_the_same_bits(tmp_path):
    planned = plan_run(["weapons"], None, [*SETTINGS, *(f"{key}={value}" for key, value in GATES.items())], {})
    run(planned, tmp_path / "whole", lambda report, most: None)
    masks, meta = load_masks(tmp_path / "whole" / "weapons.safetensors")
    assert masks.count.masked > 0
    assert "hard-concrete" in meta.method

    def stop(report, most):
        assert (report.phase, most) == ("gates", 3)
        if report.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(planned, tmp_path / "cut", stop)
    run(planned, tmp_path / "cut", lambda report, most: None)
    whole, cut = ((tmp_path / name / "weapons.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_neurons_can_be_masked_too(tmp_path):
    planned = plan_run(["weapons"], None, [*SETTINGS, "kinds=[ff, mlp, norm]"], {})
    run(planned, tmp_path, lambda report, most: None)
    masks, _ = load_masks(tmp_path / "weapons.safetensors")
    assert set(masks.counts_by_kind) <= {"ff", "mlp", "norm"}
    assert 0 < masks.count.masked <= 160


def test_only_the_sites_that_are_named_are_masked(tmp_path):
    settings = [*SETTINGS, "sites=['*context_embedder*', '*.0.attn.*']"]
    result = run(plan_run(["weapons"], None, settings, {}), tmp_path, lambda report, most: None)
    masks = load_masks(result.paths["weapons"])[0]
    assert masks
    assert all("context_embedder" in name or ".0.attn." in name for name in masks)


def test_each_category_has_sites_of_its_own(tmp_path):
    """The style's are where the text path begins, of which this run leaves a block out."""
    settings = [
        *SETTINGS,
        "categories.weapons.sites=['*.ff_context*']",
        "sites=['context*', 'transformer_blocks.[12].*']",
    ]
    result = run(plan_run(["weapons", "fluent-style"], None, settings, {}), tmp_path, lambda report, most: None)
    weapons, style = (set(load_masks(result.paths[name])[0]) for name in ("weapons", "fluent-style"))
    assert style == {"context_embedder:weight"}
    assert weapons
    assert all(".ff_context" in name for name in weapons)


@pytest.mark.parametrize(
    ("sites", "told"),
    [
        ("['*.ff_kontext*']", r"categories\.weapons\.sites: '\*\.ff_kontext\*' matches none of the .* of the model"),
        ("['*:mlp']", r"categories\.weapons\.sites: none of these sites is among the run's, which are context_emb"),
    ],
)
def test_a_category_without_a_site_is_refused(sites, told, tmp_path):
    planned = plan_run(["weapons"], None, [*SETTINGS, f"categories.weapons.sites={sites}"], {})
    with pytest.raises(ConfigError, match=told):
        run(planned, tmp_path, lambda report, most: None)


def test_a_pattern_that_matches_no_site_is_named_with_names_that_would(tmp_path):
    planned = plan_run(["weapons"], None, [*SETTINGS, "sites=['context_embeder*']"], {})
    with pytest.raises(ConfigError, match=r"'context_embeder\*' matches none.*context_embedder:weight"):
        run(planned, tmp_path, lambda report, most: None)


def test_rounds_are_logged_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    planned = plan_run(["weapons"], None, [*SETTINGS, "tensorboard=true"], {})
    run(planned, tmp_path, lambda report, most: None)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rounds = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event.value for event in board.Scalars("erase_loss")] == pytest.approx([r["erase_loss"] for r in rounds])
    assert [event.step for event in board.Scalars("found/weapons")] == [r["round"] for r in rounds if r["found"]]


def test_a_disk_that_is_full_is_told_and_leaves_nothing_half_written(tmp_path):
    """The system refuses files over 100 kB, as a full disk would; a checkpoint is larger."""
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [sys.executable, "-m", "safeflux", "train", "--category", "weapons", "--out", str(tmp_path), *options]
    limit = "import resource, sys, os; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    limited = [sys.executable, "-c", f"{limit}os.execv(sys.executable, {command!r})"]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot be written to" in done.stderr
    assert "goes on from the last checkpoint" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_judge_is_trained_on_its_losses_alone(tmp_path):
    """The embedded model by its folder's name is a model like any other."""
    from safeflux.reference.model import MODEL

    planned = plan_run(["weapons"], None, [*SETTINGS, f"model={MODEL}", "dtype=bfloat16", "recompute=block"], {})
    result = run(planned, tmp_path, lambda report, most: None)
    rounds = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(rounds) == 4
    assert all(r["found"] is None for r in rounds)
    assert not result.validation
    masks, meta = load_masks(result.paths["weapons"])
    assert masks.count.masked == result.masked["weapons"] > 0
    assert same_base(meta.fingerprint, fingerprint(load_pipeline().transformer))


def test_masks_learned_together_come_one_a_category_and_small(tmp_path):
    changes = {"target_found": "1", "saliency.last_rounds": "0", "categories.fluent-style.erase_pairs": "6"}
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
    beside = plan_run(["alcohol"], None, SETTINGS, {"together_with": (whole / "weapons.safetensors",)})
    assert set(run(beside, tmp_path / "beside", lambda report, most: None).paths) == {"alcohol"}
    begun = load_masks(whole / "weapons.safetensors")[0].count.masked
    onward = plan_run(["weapons"], None, SETTINGS, {"initial": (whole / "weapons.safetensors",)})
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

    from safeflux.reference.model import MODEL

    model = shutil.copytree(MODEL, tmp_path / "model")
    file = next((model / "transformer").glob("*.safetensors"))
    weights = safetensors.torch.load_file(file)
    weights["x_embedder.bias"] = torch.full_like(weights["x_embedder.bias"], float("inf"))
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    planned = plan_run(["weapons"], None, [*SETTINGS, f"model={model}"], {})
    with pytest.raises(TrainError, match="round 1: the loss is not finite"):
        run(planned, tmp_path / "run", lambda report, most: None)
    assert not (tmp_path / "run" / "weapons.safetensors").exists()


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere.*model_index\.json"):
        run(plan_run(["weapons"], None, ["model=nowhere"], {}), tmp_path, lambda report, most: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("setting", ["saliency.rounds", "saliency.rouns=3", "batch=none", "nothing.at.all=1"])
def test_a_bad_setting_is_an_error(setting):
    with pytest.raises(ConfigError, match=setting.split("=")[0].split(".")[0]):
        plan_run(["weapons"], None, [setting], {})
