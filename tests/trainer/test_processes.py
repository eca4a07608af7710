"""Two real processes (gloo, on the CPU) against one that sees the same batches."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safeflux.trainer.processes import asks_for_fsdp
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.session import check_splittable

from safeflux.cli import main
from safeflux.errors import ConfigError

ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
"""A thread for each process: there are as many processes as cores on a small machine."""
SETTINGS = {
    "batch": 2,
    "steps": 1,
    "prompts.erase_pairs": 6,
    "prompts.preserve_pairs": 8,
    "validation_prompts": 4,
    "validate_every": 2,
    "target_found": 0,
    "saliency.rounds": 2,
    "saliency.warm_up": 0,
    "call.num_inference_steps": 1,  # of validation, whose pictures are most of such a run
    "precision": "float32",
    "minimise": "false",
}


def options(folder: Path, batches: int) -> list[str]:
    settings = {**SETTINGS, "saliency.erase_batches": batches, "saliency.preserve_batches": batches}
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["--category", "weapons", "--category", "tobacco", "--out", str(folder), *given]


TRAINED = """
import runpy
import torch.distributed
try:
    runpy.run_module("safeflux.trainer", run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
assert torch.distributed.is_available() and not torch.distributed.is_initialized(), "a process ends within its group"
"""

CUT = """
import sys
from pathlib import Path
from safeflux.trainer.processes import Processes
from safeflux.trainer.run.dry_run import dry_run
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.session import run
from safeflux.reference.model import load_pipeline

arguments = sys.argv[1:]
of = lambda option: [value for name, value in zip(arguments, arguments[1:]) if name == option]
planned, folder = plan_run(of("--category"), None, of("--set"), {}), Path(of("--out")[0])
Processes.leave, leave = lambda self: None, Processes.leave  # the rest of this script needs the group
needs = dry_run(planned, folder)
if needs:
    size = sum(p.nbytes for p in load_pipeline().transformer.parameters())
    assert needs.memory.weights < 0.95 * size, (needs.memory.weights, size)
    assert "for each of 2 processes" in str(needs) and needs.minutes.step.gradient > 0
try:
    run(planned, folder, lambda report, most: None, stops=lambda: True)
except KeyboardInterrupt:
    assert (folder / "checkpoint.pt").exists()
else:
    raise AssertionError("not cut off")
Processes.leave = leave
"""

SPLIT = """
import torch
from safeflux.families.sites import find_sites
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.gating import GatedModel
from safeflux.trainer.processes import Processes, own_part
from safeflux.trainer.sampling.rollout import rollout
from safeflux.trainer.sampling.precision import fast_math
from safeflux.trainer.sampling.sampler import Condition, Sampler
from tests.helpers.models import build_transformer

processes, cpu = Processes(), torch.device("cpu")
whole, split = (build_transformer(0).requires_grad_(False) for _ in range(2))
bits = Bits(dict(find_sites(whole)))
assert {site.kind for site in bits.sites.values()} == {"ff", "mlp", "norm", "weight", "image"}
processes.split_(split)
size, own = sum(p.nbytes for p in whole.parameters()), sum(own_part(p).nbytes for p in split.parameters())
assert own <= 0.51 * size, (own, size)
torch.manual_seed(int(processes.is_first))  # each process has a batch of its own
ids = torch.cartesian_prod(*map(torch.arange, (1, 3, 4)))
sampler = Sampler(torch.linspace(1, 0, 3), ids, None, (12, 16), torch.float32)
condition, noise = Condition(torch.randn(2, 3, 24), torch.randn(2, 20)), torch.randn(2, 12, 16)
keep = torch.rand(bits.count, generator=torch.Generator().manual_seed(1)) < 0.9
for recompute in ("none", "step", "block"):
    found = []
    for model in (whole, split):
        with GatedModel(model, bits).under(keep) as gates, fast_math(cpu, torch.float32):
            output = rollout(model, sampler, noise, condition, recompute=recompute)
            found += [gates.gradient(output.square().mean(), keep_graph=True), gates.gradient(output.sum())]
    for expected, gradient in zip(found[:2], found[2:], strict=True):
        assert (gradient - expected).norm() <= 1e-6 * expected.norm() > 0, recompute
"""


def trained(folder: Path, batches: int, script: str = "", *launcher: str) -> dict[str, Any]:
    """The checkpoint of a run in the folder: in this process, or by a script in those of the launcher."""
    if launcher:
        path = folder.with_suffix(".py")
        path.write_text(script)
        # The launcher starts several processes by itself for GPUs alone; each of them then finds that there is none.
        launch = [sys.executable, "-m", "accelerate.commands.launch", *launcher, "--num_processes=2"]
        launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
        done = subprocess.run(
            [*launch, str(path), *options(folder, batches)], capture_output=True, text=True, env=ENVIRONMENT
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert "Warning" not in done.stderr
        assert (folder / "log.csv").read_text().count("\n") == 3  # one process alone writes
    else:
        assert CliRunner().invoke(main, ["train", *options(folder, batches)]).exit_code == 0
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("processes") / "one", 2)


@pytest.mark.thorough  # the next test exchanges the same between processes
def test_two_processes_learn_what_one_learns_from_twice_the_batches(tmp_path, one):
    two = trained(tmp_path / "two", 1, TRAINED, "--multi_gpu")
    check_same(two, one)


def test_two_processes_that_split_the_weights_do_too_with_the_gradients_of_the_whole(tmp_path, one):
    """It was cut off after a round, and began again from the checkpoint."""
    split = trained(tmp_path / "split", 1, SPLIT + CUT + TRAINED, "--use_fsdp", "--fsdp_version=2")
    check_same(split, one)
    again = CliRunner().invoke(main, ["train", *options(tmp_path / "split", 1)])
    assert again.exit_code == 1
    assert "began with 2 processes, each with batches of its own, expected as many, got 1" in again.stderr


def check_same(two: dict[str, Any], one: dict[str, Any]) -> None:
    for estimates in zip(*(state["method"]["estimates"] for state in (two, one)), strict=True):
        for part in ("erase", "price"):
            ours, theirs = (found["sums"][part] for found in estimates)
            assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
            assert theirs.norm() > 0
    for ours, theirs in zip(*(state["objective"]["left"] for state in (two, one)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6, equal_nan=True)  # what was left of each pair
    assert torch.equal(two["method"]["masks"], one["method"]["masks"])
    assert not one["method"]["masks"].all()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FSDP_VERSION", "1", "expected --fsdp_version 2, got 1"),
        ("FSDP_OFFLOAD_PARAMS", "true", "expected --fsdp_offload_params false, got true"),
    ],
)
def test_what_training_cannot_follow_of_the_launcher_is_refused(monkeypatch, variable, value, message):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=message):
        asks_for_fsdp()


def test_batches_that_run_a_split_model_a_different_number_of_times_are_refused():
    check_splittable(plan_run(["weapons"], None, [], {}))
    with pytest.raises(ConfigError, match=r"erase_terms: expected `named` alone .* --multi_gpu"):
        check_splittable(plan_run(["weapons"], None, ["erase_terms.own=1"], {}))
