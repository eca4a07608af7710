"""A dry run tells what a run needs and asks for, loads nothing, and exits with 1 where the run does not fit."""

import pytest
from click.testing import CliRunner
from safeflux.trainer.objective.laid_out import memory_of, shape_of
from safeflux.trainer.objective.memory import Memory
from safeflux.trainer.run.dry_run import DryRun, dry_run
from safeflux.trainer.run.planning import plan_run

from safeflux.cli import main
from safeflux.errors import SafeFluxError
from safeflux.reference.model import load_pipeline
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
    assert not (tmp_path / "runs").exists()
    large = CliRunner().invoke(main, [*arguments, "batch=100000"])
    assert (large.exit_code, "it does not fit" in large.stdout) == (1, True)


@pytest.mark.parametrize(("free", "fits"), [((10, 5), True), ((9, 5), False), ((10, 4), False)])
def test_on_an_accelerator_the_estimates_are_apart(free, fits):
    memory = Memory(weights=6, gated_layer=1, estimates=5, activations=3)
    assert DryRun(memory, free, True, {}, None, {}).fits is fits


def test_a_folder_without_a_transformer_is_refused(tmp_path):
    with pytest.raises(SafeFluxError, match="expected a pipeline with a transformer"):
        shape_of(str(tmp_path))
