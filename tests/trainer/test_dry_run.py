"""A dry run tells what a run needs and asks for, loads nothing, and exits with 1 where the run does not fit."""

import pytest
from click.testing import CliRunner
from safeflux.trainer.objective.laid_out import lay_out_run, memory_of, shape_of
from safeflux.trainer.objective.memory import Memory
from safeflux.trainer.objective.step_time import StepTime, measure_step
from safeflux.trainer.processes import Processes
from safeflux.trainer.run.checkpoint import CHECKPOINT, REFERENCES
from safeflux.trainer.run.dry_run import DryRun, Minutes, dry_run
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.session import run

from safeflux.cli import main
from safeflux.errors import SafeFluxError
from safeflux.reference.model import load_pipeline
from tests.helpers.runs import SETTINGS
from tests.helpers.tiny import save_tiny


def test_the_embedded_model_needs_what_its_files_say():
    planned = plan_run(["weapons"], None, [], {})
    shape = shape_of("emoji-flux")
    assert shape.pixels == load_pipeline().vae_scale_factor * 2
    weights = sum(p.numel() * p.element_size() for p in load_pipeline().transformer.parameters())
    assert memory_of(shape, planned).weights == weights


def test_the_first_prompts_and_anchors_are_those_of_the_run(tmp_path):
    needs = dry_run(plan_run(["weapons"], None, ["prompts.erase_pairs=7"], {}), tmp_path / "run")
    assert needs.prompts == {"weapons": 7, "preserved": 2048}
    assert all("nothing" in pair.anchor for pair in needs.examples["weapons"])
    assert needs.fits
    assert not (tmp_path / "run").exists()


def test_the_command_prints_it_for_any_model_and_fails_where_it_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = save_tiny(tmp_path / "flux", "flux2-klein-4b")
    arguments = ["train", "--model", str(model), "--pack", "weapons", "--dry-run", "--set"]
    done = CliRunner().invoke(main, [*arguments, "height=32", "--set", "width=32"])
    assert done.exit_code == 0, done.output
    assert "validation none: no detector is named" in done.stdout
    assert done.stdout.endswith("it fits\n")
    assert "from one measured step of a batch" in done.stdout
    assert "disk " in done.stdout
    assert not (tmp_path / "runs").exists()
    large = CliRunner().invoke(main, [*arguments, "batch=100000"])
    assert (large.exit_code, "it does not fit" in large.stdout) == (1, True)


@pytest.mark.parametrize(("free", "fits"), [((10, 5), True), ((9, 5), False), ((10, 4), False)])
def test_on_an_accelerator_the_masks_are_apart(free, fits):
    memory = Memory(weights=6, gated_layer=1, masks=5, activations=3, estimates=90)
    assert DryRun(memory, free, True, (1, 2), None, {}, None, {}).fits is fits
    full = DryRun(memory, (10, 5), True, (3, 2), None, {}, None, {})
    assert (full.fits, "choose an --out on a larger disk" in str(full)) == (False, True)


def test_minutes_count_every_batch_of_a_run_by_the_measured_step():
    settings = ["batch=10", "steps=4", "prompts.erase_pairs=25", "prompts.preserve_pairs=20", "validation_prompts=30"]
    settings += [
        "saliency.rounds=6",
        "saliency.last_rounds=2",
        "saliency.erase_batches=3",
        "saliency.preserve_batches=2",
    ]
    settings += ["validate_every=4", "minimise=false"]
    planned, step = plan_run(["weapons"], None, settings, {}), StepTime(forward=60.0, gradient=600.0)
    minutes = Minutes.of(planned, step)
    assert minutes.references == (2 * 3 + 2) * 4  # batches of pairs twice, of prompts to preserve once; 4 steps
    assert minutes.rounds == 8 * (3 + 2 * 2) * 4 * 10
    assert minutes.validation == pytest.approx(((2 + 2) * 60 + 30) * 8 / 10)  # looks, a second one, 8 steps, 10 a batch
    blind = Minutes.of(planned.model_copy(update={"detector": None, "model": "folder"}), step)
    assert (blind.validation, blind.rounds) == (0, minutes.rounds)
    gates = plan_run(["weapons"], None, [*settings, "method=gates", "gates.rounds=2", "gates.steps_per_round=5"], {})
    assert Minutes.of(gates, step).rounds == 2 * 5 * 2 * 4 * 10


def test_a_measured_step_takes_longer_with_its_gradient_and_foretells_the_disk(tmp_path):
    planned = plan_run(["weapons"], None, [*SETTINGS, "batch=8"], {})
    step = measure_step(lay_out_run(shape_of("emoji-flux"), planned), planned, Processes())
    assert 0 < step.forward < step.gradient
    needs = dry_run(planned, tmp_path / "a" / "b")
    assert 0 < needs.memory.estimates < needs.disk[0] < needs.disk[1]
    assert not list(tmp_path.iterdir())
    run(planned, tmp_path / "run", lambda report, most: None)
    kept = sum((tmp_path / "run" / name).stat().st_size for name in (CHECKPOINT, REFERENCES))
    assert 0.4 < kept / (needs.disk[0] - needs.memory.estimates) < 1  # there is room for two checkpoints


def test_a_model_that_is_not_here_is_summed_up_by_its_profile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "flux2-klein-4b", "--pack", "weapons", "--dry-run", "--set", "batch=500"]
    done = CliRunner().invoke(main, ["train", *arguments], catch_exceptions=False)
    assert (done.exit_code, "not measured: the model does not fit" in done.stdout) == (1, True)
    assert "weights 7.75 GB" in done.stdout


def test_a_folder_without_a_transformer_is_refused(tmp_path):
    with pytest.raises(SafeFluxError, match="expected a pipeline with a transformer"):
        shape_of(str(tmp_path))
