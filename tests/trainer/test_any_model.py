"""Models of every pipeline class, small and with random weights, are trained and validated by a zero-shot detector."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safeflux.trainer.asked.config import make_config
from safeflux.trainer.asked.options import call_of, detector_of, options_of
from safeflux.trainer.asked.prompts import PromptSource
from safeflux.trainer.processes import Processes
from safeflux.trainer.run.looking import likeness, open_for
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.session import check_run, run

from safeflux.detectors.base import Wanted
from safeflux.detectors.labels import labels_of
from safeflux.detectors.specs import open_detector
from safeflux.errors import ConfigError
from safeflux.evaluation.questions import Sizes
from safeflux.evaluation.subject import policy_subject
from safeflux.evaluation.worded.measure import Measuring
from safeflux.evaluation.worded.questions import Words
from safeflux.masks.file import load_masks
from safeflux.masks.store import open_store
from safeflux.packs.load import load_pack, load_packs
from safeflux.packs.schema import PackConcept
from safeflux.policy.load import load_policy_text
from safeflux.preview.page import make_page
from safeflux.preview.run import Wish, run_preview
from safeflux.profiles.load import load_profile
from safeflux.reference.measure import draw
from safeflux.reference.model import load_pipeline
from tests.helpers.html_pages import check_alone
from tests.helpers.runs import PACK, POLICY, SETTINGS
from tests.helpers.tiny import save_tiny
from tests.helpers.zero_shot import save_classifier, save_clip

SMALLER = [*SETTINGS, "saliency.rounds=2", "validation_prompts=4", "minimise=true", "target_found=0.9"]
TINY = ["height=32", "width=32", "dtype=float32", "max_sequence_length=128"]
TINY += ["call.num_inference_steps=1", "call.max_sequence_length=64"]  # language models pad every prompt to it


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A pack, a CLIP and a classifier."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "vehicles.yaml").write_text(PACK)
    save_clip(folder / "clip")
    save_classifier(folder / "classifier", ["minivan, car", "bicycle", "owl"])
    return folder


FLUX2_DEV = pytest.param("flux2-dev", marks=pytest.mark.thorough)  # flux2-klein-base-4b has the same transformer


@pytest.mark.parametrize("name", ["flux1-kontext-dev", "flux2-klein-base-4b", FLUX2_DEV, "chroma1-hd"])
def test_any_model_is_trained_measured_and_previewed(home, tmp_path, name):
    """A tiny random model of each pipeline's class, from a pack to a page; benchmarks.profiles does so for all."""
    model = save_tiny(tmp_path / name, name)
    notes: list[str] = []
    planned = plan_run(
        [],
        None,
        [*SMALLER, *(TINY if name == "flux1-kontext-dev" else (*TINY, "minimise=false"))],  # one of them shows that too
        {},
        packs=[str(home / "vehicles.yaml")],
        model=str(model),
        detector=f"zero-shot:{home / 'clip'}",
    )
    assert (planned.model, planned.dtype, planned.kinds) == (str(model), "float32", ("weight",))
    result = run(planned, tmp_path / "run", lambda report, most: None, note=notes.append)
    figures = result.validation["vehicles"]["validation"]
    assert 0 <= figures["found"] <= 1
    assert figures["detector"] == f"zero-shot:{home / 'clip'}"
    assert figures["fidelity"]["ssim"]["n"] == figures["fidelity"]["two_noises_ssim"]["n"] == 2
    assert figures["traces of it seen"]["masked"]["n"] == 4
    seen = figures["on_the_base_model"]["vehicles"]
    assert set(seen) == {"automobile", "bicycle"}
    assert all(one["false_alarms"]["rate"] <= 0.02 for one in seen.values())
    assert notes[0].startswith(f"zero-shot:{home / 'clip'}, vehicles: finds ")
    masks, meta = load_masks(result.paths["vehicles"])
    assert masks.count.masked == result.masked["vehicles"] > 0
    assert meta.concepts == ("automobile", "bicycle")
    assert json.loads((tmp_path / "run/curves.json").read_text())["categories"]["vehicles"]["rounds"]
    with Image.open(next((tmp_path / "run/pictures").iterdir())) as picture:
        assert (picture.height, picture.width % 32) == (64, 0)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["detector"] == planned.detector
    _measure_and_preview(home, tmp_path, model, call_of(planned))


def _measure_and_preview(home, tmp_path, model, call):
    profile, pipe, store = load_profile(model), load_pipeline(model), open_store(tmp_path / "run")
    policy = load_policy_text(POLICY.encode(), "own.yaml")
    subject, packs = policy_subject(policy, pipe, store), load_packs([str(home / "vehicles.yaml")])
    sizes, spec = Sizes(found=2, details=2, neighbours=1, kept=4, others=1), f"zero-shot:{home / 'clip'}"
    measuring = Measuring.of(profile, subject.concepts, packs, [spec], sizes)
    opinions = measuring.measure(pipe, subject.masks, settings=call, batch=8)
    figures = opinions.first
    assert set(figures.targets["vehicles"].by_concept) == {"automobile", "bicycle"}
    assert figures.targets["vehicles"].found_held_out.base.n == 2
    assert len(figures.kept) == 3
    assert opinions.by_detector[spec].calibrations["vehicles"].overall.n == 2
    wish = Wish(images=2, packs=packs, detectors=(spec,))
    shown = run_preview(pipe, profile, policy, subject, wish, store=store, settings=call, batch=8)
    assert shown.receipt["state"] == "GUARDED"
    assert [len(section.pairs) for section in shown.sections] == [2, 1, 2]
    check_alone(make_page(shown))


def test_a_prompt_that_is_cut_off_before_it_differs_from_its_anchor_is_found_before_round_1(home, tmp_path):
    """FLUX.2 dev begins each prompt with an instruction of its own."""
    settings = [*SMALLER, "height=32", "width=32", "dtype=float32", "max_sequence_length=20"]
    planned = plan_run(
        [], None, settings, {}, packs=[str(home / "vehicles.yaml")], model=str(save_tiny(tmp_path / "m", "flux2-dev"))
    )
    with pytest.raises(ConfigError, match=r"are the same to the model: .*max_sequence_length=20 tokens"):
        run(planned, tmp_path / "run", lambda report, most: None)
    assert not (tmp_path / "run/log.jsonl").exists()


def test_a_pack_on_the_embedded_model_speaks_its_captions_and_leaves_its_own_things_out(home):
    planned = plan_run([], None, [], {}, packs=[str(home / "vehicles.yaml")])
    assert (planned.model, detector_of(planned)) == ("emoji-flux", "judge")
    assert planned.prompts.single == ("{thing}, {style} style, {background} background",)
    assert "a car" not in planned.prompts.neutral
    assert "a bus" in planned.prompts.neutral
    assert "weapons" in planned.prompts.others
    profile = load_profile("emoji-flux")
    assert {"a plane", "an aeroplane"} <= set(planned.prompts.neutral)
    planes = load_pack("weapons").model_copy(update={"concepts": {"airplane": PackConcept(words=("an airplane",))}})
    own = make_config(options_of(profile, {"planes": planes}), "test")
    assert {"a plane", "an aeroplane", "an airplane"}.isdisjoint(own.prompts.neutral)
    assert {"a plane", "an airplane"}.isdisjoint(Words.of(profile, {"planes": planes}).known)
    assert call_of(planned) == load_profile("emoji-flux").call


def test_a_concept_that_the_judge_knows_by_another_name_is_named_in_the_error(home, tmp_path):
    (tmp_path / "cars.yaml").write_text((home / "vehicles.yaml").read_text().replace("automobile:", "car:"))
    planned = plan_run([], None, [], {}, packs=[str(tmp_path / "cars.yaml")])
    with pytest.raises(ConfigError, match=r"got 'car' \(did you mean 'automobile'\?\)"):
        check_run(planned, tmp_path / "run", Processes())


def test_a_real_model_gets_the_packs_templates_and_everyday_things():
    profile = load_profile("flux2-klein-4b")
    planned = make_config(options_of(profile, {"weapons": load_pack("weapons")}), "test")
    assert "a photo of {thing}" in planned.prompts.single
    assert set(planned.prompts.others) == {"alcohol", "tobacco", "drugs", "gambling", "horror"}
    assert planned.categories["weapons"].anchor_of("sword") == "a walking stick"
    assert (planned.height, planned.batch, planned.recompute, detector_of(planned)) == (512, 1, "block", None)
    assert call_of(planned) == profile.call | {"height": 512, "width": 512}
    trains = PackConcept(words=("a steam engine",), held_out=("a train",))
    own = load_pack("weapons").model_copy(update={"concepts": {"train": trains}})
    assert "a train" not in make_config(options_of(profile, {"weapons": own}), "test").prompts.neutral
    style = make_config(options_of(profile, {"art-style": load_pack("art-style")}), "test")
    assert "Claude Monet" in style.prompts.slots["style"]


def test_things_alone_and_beside_a_concept_are_asked_for_in_turn(home):
    import numpy as np

    source = PromptSource(plan_run([], None, [], {}, packs=[str(home / "vehicles.yaml")]))
    alone, beside = (ask(np.random.default_rng(0), 30) for ask in (source.alone, source.beside))
    assert len({thing for _, thing in alone}) == len({thing for _, thing in beside}) == 30
    assert all(thing in prompt for prompt, thing in alone + beside)
    erased = ("a car", "an automobile", "a bicycle")
    assert all(any(word in prompt for word in erased) for prompt, _ in beside)
    assert not any(word in prompt for word in erased for prompt, _ in alone)


def test_labels_of_a_classifier_are_found_by_concept_word_or_category(home):
    planned = plan_run([], None, [], {}, packs=[str(home / "vehicles.yaml")])
    detector = open_detector(f"classifier:{home / 'classifier'}")
    labels = labels_of(detector, {"vehicles": planned.categories["vehicles"].concepts})
    assert labels == {("vehicles", "automobile"): "minivan, car", ("vehicles", "bicycle"): "bicycle"}
    weapons = plan_run(["weapons"], None, [], {})
    with pytest.raises(ConfigError, match="category 'weapons', concept 'kitchen-knife': the detector classifier"):
        open_for(weapons, f"classifier:{home / 'classifier'}")


def test_a_detector_with_labels_of_its_own_measures_what_is_kept_by_likeness(home, tmp_path):
    planned = plan_run(
        [], None, SMALLER, {}, packs=[str(home / "vehicles.yaml")], detector=f"classifier:{home / 'classifier'}"
    )
    result = run(planned, tmp_path, lambda report, most: None)
    kept = result.validation["vehicles"]["validation"]["kept"]
    assert 0.2 < kept <= 1


def test_likeness_is_the_correlation_of_pixels():
    import numpy as np

    rng = np.random.default_rng(0)
    a, b = (rng.random(3072).astype(np.float32) for _ in range(2))
    assert likeness(a, a) == 1
    assert likeness(a, 2 * a + 1) == pytest.approx(1, abs=1e-5)
    assert likeness(a, b) < 0.1
    assert likeness(a, -a) == 0
    assert likeness(a * 0, b) == 0


def test_mistakes_are_found_before_the_model_loads(home, tmp_path):
    with pytest.raises(ConfigError, match="got --category and --pack"):
        plan_run(["weapons"], None, [], {}, packs=["weapons"])
    with pytest.raises(ConfigError, match="name packs with --pack"):
        plan_run(["weapons"], None, [], {}, model="flux1-dev")
    planned = plan_run([], None, SETTINGS, {}, packs=["weapons"], detector="oracle")
    with pytest.raises(ConfigError, match="detector 'oracle'"):
        run(planned, tmp_path, lambda report, most: None)


def test_the_tiny_models_are_drawn_by_their_own_pipelines(tmp_path):
    pipe = load_pipeline(save_tiny(tmp_path / "m", "flux2-klein-4b"))
    assert type(pipe).__name__ == "Flux2KleinPipeline"
    image = draw(pipe, ["a cat"], 0, settings={"height": 32, "width": 32, "num_inference_steps": 1})[0]
    assert image.size == (32, 32)
    assert Wanted().device == "cpu"
