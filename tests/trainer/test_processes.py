"""Two real processes (gloo, on the CPU) against one that sees the same batches."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from click.testing import CliRunner

from safeflux.cli import main

ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
"""A thread for each process: there are as many processes as cores on a small machine."""
SETTINGS = {
    "batch": 2,
    "steps": 1,
    "prompts.erase_pairs": 6,
    "prompts.preserve_pairs": 8,
    "validation_prompts": 4,
    "validate_every": 1,
    "target_found": 0,
    "saliency.rounds": 1,
    "saliency.warm_up": 0,
    "precision": "float32",
    "minimise": "false",
}


def options(folder: Path, batches: int) -> list[str]:
    settings = {**SETTINGS, "saliency.erase_batches": batches, "saliency.preserve_batches": 2 * batches}
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["--category", "weapons", "--category", "tobacco", "--out", str(folder), *given]


TWO = """
import runpy
import torch.distributed
try:
    runpy.run_module("safeflux.trainer", run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
assert torch.distributed.is_available() and not torch.distributed.is_initialized(), "a process ends within its group"
"""


def test_two_processes_learn_what_one_learns_from_twice_the_batches(tmp_path):
    # The launcher starts several processes by itself for GPUs alone; each of them then finds that there is none.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    script = tmp_path / "two.py"
    script.write_text(TWO)
    two = [*launch, str(script), *options(tmp_path / "two", batches=1)]
    done = subprocess.run(two, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert CliRunner().invoke(main, ["train", *options(tmp_path / "one", batches=2)]).exit_code == 0
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("two", "one")]
    for estimates in zip(*(state["method"]["estimates"] for state in states), strict=True):
        for part in ("erase", "price"):  # nothing is off yet, so that preservation has no slope
            ours, theirs = (found["sums"][part] for found in estimates)
            assert (ours - theirs).norm() <= 1e-3 * theirs.norm()
            assert theirs.norm() > 0
    for ours, theirs in zip(
        *(state["objective"]["left"] for state in states), strict=True
    ):  # what was left of each pair
        assert torch.allclose(ours, theirs, atol=1e-3, equal_nan=True)
    assert (tmp_path / "two" / "log.csv").read_text().count("\n") == 2  # one process alone writes
