"""Runs that were cut off, by a key press, a kill or a full disk: they go on with the same bits, and lose nothing."""

import os
import resource
import shutil
import signal
import time

import pytest
from click.testing import CliRunner
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.session import run

from safeflux.cli import main
from safeflux.disk.reading import state_of
from safeflux.errors import ConfigError
from safeflux.masks.file import load_masks
from tests.helpers.forked import begin
from tests.helpers.runs import SETTINGS

pytestmark = pytest.mark.slow


def test_a_run_that_was_cut_off_goes_on_with_the_same_bits(whole, tmp_path):
    """By a key press after a round, and by a kill after a later one."""
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    folder = tmp_path / "run"
    command = ["train", "--category", "weapons", "--out", str(folder), *options]
    for kill in (signal.SIGINT, signal.SIGKILL):
        before = _state_of(folder / "checkpoint.pt")
        process = begin(command, tmp_path / kill.name)
        deadline = time.monotonic() + 300
        while _state_of(folder / "checkpoint.pt") == before:
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, kill)
        process.join()
        assert process.exitcode == (130 if kill is signal.SIGINT else -signal.SIGKILL)
        errors = (tmp_path / kill.name).read_text()
        assert kill is signal.SIGKILL or "the same command resumes after the last round" in errors
        assert not (folder / "weapons.safetensors").exists()
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0
    assert "warning: no validation found every category in at most 0.0 %" in done.stderr
    assert (folder / "weapons.safetensors").read_bytes() == (whole / "weapons.safetensors").read_bytes()


def _state_of(path):
    """What differs once a file is written again; None while there is none."""
    return state_of(path) if path.exists() else None


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


def test_a_full_disk_is_reported_and_leaves_nothing_half_written(tmp_path):
    """The system refuses files over 100 kB, as a full disk would; references and checkpoint are larger."""
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        done = CliRunner().invoke(main, ["train", "--category", "weapons", "--out", str(tmp_path), *options])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.exit_code == 3
    assert "cannot be written to" in done.stderr
    assert "resumes from the last checkpoint" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def _changed(**changes):
    return [*SETTINGS, *(f"{key}={value}" for key, value in changes.items())]


def test_a_resumed_run_reads_its_references_instead_of_drawing_them(tmp_path):
    drawn = []

    def cut(report, most):
        raise KeyboardInterrupt

    planned = plan_run(["weapons"], None, SETTINGS, {})
    with pytest.raises(KeyboardInterrupt):
        run(planned, tmp_path, cut, phase=lambda *step: drawn.append(step))
    assert drawn[-1] == ("base model's outputs", 14, 14)
    kept = (tmp_path / "references.cache").read_bytes()
    assert len(kept) < 10_000 * 14  # bytes a pair
    drawn.clear()
    with pytest.raises(KeyboardInterrupt):
        run(planned, tmp_path, cut, phase=lambda *step: drawn.append(step))
    assert not drawn
    # Damage, and references of another run, are not taken: they are drawn again.
    (tmp_path / "references.cache").write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(KeyboardInterrupt):
        run(planned, tmp_path, cut, phase=lambda *step: drawn.append(step))
    assert len(drawn) > 1
    assert (tmp_path / "references.cache").read_bytes() == kept
    drawn.clear()
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(KeyboardInterrupt):
        run(plan_run(["weapons"], None, _changed(seed=1), {}), tmp_path, cut, phase=lambda *step: drawn.append(step))
    assert len(drawn) > 1


def test_the_first_interrupt_waits_for_the_round_and_the_second_does_not(tmp_path):
    """The answer to the key press comes at once, the exit with the checkpoint; the second round lasts for minutes."""
    for presses, batches in ((1, 5), (2, 800)):
        settings = _changed(
            **{"batch": 8, "steps": 2, "saliency.preserve_batches": batches},
            **{"validate_every": 100, "tensorboard": "true"},
        )
        options = [part for setting in settings for part in ("--set", setting)]
        folder = tmp_path / str(presses)
        errors = tmp_path / f"{presses}.txt"
        process = begin(["train", "--category", "weapons", "--out", str(folder), *options], errors)
        while not (folder / "tensorboard").exists():  # made right before the first round
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        while "\n" not in (answer := errors.read_text().partition("Ctrl-C")[2]):
            assert process.is_alive()
            time.sleep(0.01)
        assert "waiting for the end of round 1 and its checkpoint" in answer
        assert "The same command resumes the run" in answer
        assert not (folder / "checkpoint.pt").exists()
        if presses == 2:
            os.kill(process.pid, signal.SIGINT)
        process.join()
        rest = errors.read_text()
        assert process.exitcode == 130
        assert ("round 1 saliency" in rest) == (folder / "checkpoint.pt").exists() == (presses == 1)
        assert "interrupted; the same command resumes" in rest
