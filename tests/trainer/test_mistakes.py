"""Mistakes in a run's options, masks and folders: each is named, most of them before the model loads."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from safeflux.trainer.processes import Processes
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.session import check_run, run

from safeflux.disk.locking import locked
from safeflux.errors import ConfigError, MaskMismatchError, ModelError, SafeFluxError
from safeflux.masks.file import load_masks, save_masks
from safeflux.reference.model import EMOJI_FLUX
from tests.helpers.runs import MASKS, SETTINGS


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ("['*.ff_kontext*']", r"categories\.weapons\.sites: '\*\.ff_kontext\*' matches none of the .* of the model"),
        ("['*:mlp']", r"categories\.weapons\.sites: none of these sites is among the run's, which are context_emb"),
    ],
)
def test_a_category_without_a_site_is_refused(sites, message, tmp_path):
    planned = plan_run(["weapons"], None, [*SETTINGS, f"categories.weapons.sites={sites}"], {})
    with pytest.raises(ConfigError, match=message):
        run(planned, tmp_path, lambda report, most: None)


def test_a_pattern_that_matches_no_site_is_named_with_names_that_would(tmp_path):
    planned = plan_run(["weapons"], None, [*SETTINGS, "sites=['context_embeder*']"], {})
    with pytest.raises(ConfigError, match=r"'context_embeder\*' matches none.*context_embedder:weight"):
        run(planned, tmp_path, lambda report, most: None)


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere.*model_index\.json"):
        run(plan_run(["weapons"], None, ["model=nowhere"], {}), tmp_path, lambda report, most: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("setting", ["saliency.rounds", "saliency.rouns=3", "batch=none", "nothing.at.all=1"])
def test_a_bad_setting_is_an_error(setting):
    with pytest.raises(ConfigError, match=setting.split("=")[0].split(".")[0]):
        plan_run(["weapons"], None, [setting], {})


def test_rounds_that_only_gather_estimates_are_refused():
    with pytest.raises(ConfigError, match=r"saliency\.rounds.*more than the 4 of `warm_up`.*got 4: no bit"):
        plan_run(["weapons"], None, ["saliency.warm_up=4", "saliency.rounds=4"], {})


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (["categories.weapons.concepts={rhino: [a rhino]}"], {}, "the judge of emoji-flux knows.*'rhino'"),
        (["categories.weapons.concepts={rhino: [a rhino], auto-mobile: [a car]}"], {}, "'rhino'.*mean 'automobile'"),
        (["sites=['context_embeder*']"], {}, "'context_embeder\\*' matches none.*context_embedder:weight"),
        (["prompts.images=[no.png]"], {}, "no.png: cannot be read as an image"),
        ([], {"initial": (Path("none.safetensors"),)}, "none.safetensors: cannot be read"),
        ([], {"together_with": (MASKS / "weapons.safetensors",)}, "together_with: .*'weapons'.*--initial"),
    ],
)
def test_mistakes_are_found_before_the_weights_are_read(tmp_path, monkeypatch, settings, given, message):
    """The model's folder lacks the VAE's weights, so that nothing can be loaded from it."""
    monkeypatch.chdir(tmp_path)
    without = shutil.copytree(EMOJI_FLUX, tmp_path / "model")
    next((without / "vae").glob("*.safetensors")).unlink()
    monkeypatch.setattr("safeflux.reference.model.EMOJI_FLUX", without)
    with pytest.raises(SafeFluxError, match=message):
        run(plan_run(["weapons"], None, [*SETTINGS, *settings], given), tmp_path / "run", lambda report, most: None)
    with pytest.raises(OSError, match="diffusion_pytorch_model"):  # nothing else is wrong
        run(plan_run(["weapons"], None, SETTINGS, {}), tmp_path / "run", lambda report, most: None)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_a_file_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is not a folder that can be written to"):
        run(plan_run(["weapons"], None, SETTINGS, {}), tmp_path / "file" / "run", lambda report, most: None)


def test_a_folder_that_another_run_uses_is_refused_at_once(tmp_path):
    with locked(tmp_path), pytest.raises(ConfigError, match="another process is using it"):
        check_run(plan_run(["weapons"], None, SETTINGS, {}), tmp_path, Processes())


def test_a_mask_for_other_base_weights_is_refused(tmp_path):
    masks, meta = load_masks(MASKS / "alcohol.safetensors")
    foreign = tmp_path / "alcohol.safetensors"
    save_masks(foreign, masks, dataclasses.replace(meta, fingerprint="unknown"))
    with pytest.raises(MaskMismatchError, match="made for other base weights"):
        run(plan_run(["weapons"], None, SETTINGS, {"together_with": (foreign,)}), tmp_path, lambda *_: None)
