"""Whole runs on the embedded model: what they write, and that a run that was cut off goes on with the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from safeflux.trainer.session import plan_run, run

from safeflux.cli import main
from safeflux.errors import ConfigError, ModelError
from safeflux.fingerprint import fingerprint, same_base
from safeflux.maskfile import load_masks
from safeflux.reference.model import load_pipeline

SMALL = {
    "batch": "2",
    "steps": "1",
    "validation_prompts": "4",
    "evaluation_each": "0",
    "saliency.rounds": "2",
    "saliency.bits_off": "40",
    "saliency.exchange_rounds": "2",
    "saliency.exchange_on": "20",
    "saliency.exchange_off": "10",
    "saliency.erase_batches": "1",
    "saliency.neutral_batches": "1",
    "target_found": "0",
}
SETTINGS = [f"{key}={value}" for key, value in SMALL.items()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a small run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run(plan_run("weapons", None, SETTINGS, {}), folder, lambda report, most: None)
    return folder


def test_a_run_leaves_a_mask_file_for_its_base_model(whole):
    masks, meta = load_masks(whole / "masks.safetensors")
    assert 0 < masks.count.masked <= 2 * 40 + 2 * 10
    assert set(masks.counts_by_kind) == {"weight"}
    assert (meta.category, meta.base_model) == ("weapons", "emoji-flux")
    assert same_base(meta.fingerprint, fingerprint(load_pipeline().transformer))


def test_the_log_has_a_line_for_each_round(whole):
    rounds = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [r["phase"] for r in rounds] == ["saliency"] * 2 + ["exchange"] * 2
    assert [r["found"] is None for r in rounds] == [True, False, True, False]
    assert all(r["erase_loss"] > 0 for r in rounds)
    assert rounds[0]["preserve_loss"] < 1e-4  # nothing was masked yet: the model is the base model, up to rounding


def test_the_mask_that_preserves_best_of_those_that_erase_enough_is_the_result(tmp_path):
    changes = {"target_found": "1", "validate_every": "1", "saliency.exchange_rounds": "4"}
    settings = [f"{key}={value}" for key, value in {**SMALL, **changes}.items()]
    assert run(plan_run("weapons", None, settings, {}), tmp_path, lambda report, most: None).reaches_target
    rounds = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["phase"] for r in rounds] == ["saliency"] + ["exchange"] * 4  # everything is erased enough at once
    best = max(rounds, key=lambda r: r["right"])
    assert load_masks(tmp_path / "masks.safetensors")[0].count.masked == best["masked"]


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_cut_off_goes_on_with_the_same_bits(whole, tmp_path, kill):
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [sys.executable, "-m", "safeflux", "train", "--category", "weapons", "--out", str(tmp_path), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, kill)
    errors = process.communicate()[1]
    assert process.returncode == (130 if kill is signal.SIGINT else -signal.SIGKILL)
    assert kill is signal.SIGKILL or "goes on from the last round" in errors
    assert not (tmp_path / "masks.safetensors").exists()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "warning: no validation found the concept in at most 0.0 %" in done.stderr
    assert (tmp_path / "masks.safetensors").read_bytes() == (whole / "masks.safetensors").read_bytes()


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
        run(plan_run("alcohol", None, SETTINGS, {}), whole, lambda report, most: None)
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
    planned = plan_run("weapons", None, [*SETTINGS, *(f"{key}={value}" for key, value in GATES.items())], {})
    run(planned, tmp_path / "whole", lambda report, most: None)
    masks, meta = load_masks(tmp_path / "whole" / "masks.safetensors")
    assert masks.count.masked > 0
    assert "hard-concrete" in meta.method

    def stop(report, most):
        assert (report.phase, most) == ("gates", 3)
        if report.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(planned, tmp_path / "cut", stop)
    run(planned, tmp_path / "cut", lambda report, most: None)
    whole, cut = ((tmp_path / name / "masks.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_neurons_can_be_masked_too(tmp_path):
    planned = plan_run("weapons", None, [*SETTINGS, "kinds=[ff, mlp, norm]", "saliency.exchange_rounds=0"], {})
    run(planned, tmp_path, lambda report, most: None)
    masks, _ = load_masks(tmp_path / "masks.safetensors")
    assert set(masks.counts_by_kind) <= {"ff", "mlp", "norm"}
    assert 0 < masks.count.masked <= 80


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere.*model_index\.json"):
        run(plan_run("weapons", None, ["model=nowhere"], {}), tmp_path, lambda report, most: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("setting", ["saliency.rounds", "saliency.rouns=3", "batch=none", "nothing.at.all=1"])
def test_a_bad_setting_is_an_error(setting):
    with pytest.raises(ConfigError, match=setting.split("=")[0].split(".")[0]):
        plan_run("weapons", None, [setting], {})
