"""What a run sees of its masks on the way, by the embedded model and its judge."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safeflux.trainer.asked.config import CategoryConfig, make_config
from safeflux.trainer.asked.judged import erased_things
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.run.looking import DetectorValidator
from safeflux.trainer.run.validation import JudgeValidator, Validation, confirm, found, larger_share, validate

from safeflux.detectors.judge import JudgeDetector
from safeflux.errors import ConfigError
from safeflux.families.sites import find_sites
from safeflux.masks.file import load_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.reference.judge import Judge
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import known_concepts, vocabulary

NAMES = ("weapons", "fluent-style")
FEW_STEPS = {"call": {"num_inference_steps": 4}}
MASKS = Path(__file__).parents[2] / "policies" / "masks" / "emoji-flux"


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def validator(pipe):
    config = make_config({**embedded_options(NAMES), "validation_prompts": 16, **FEW_STEPS}, "test")
    return JudgeValidator(pipe, Judge(), config, {"alcohol": ("alcohol",), "rhinos": ("rhino",)})


@pytest.fixture(scope="module")
def wrecking(pipe):
    """A mask under which nothing is drawn as asked: no text gets in."""
    sites = find_sites(pipe.transformer).items()
    return MaskSet({name: torch.zeros(site.shape, dtype=torch.bool) for name, site in sites if "context" in name})


@pytest.fixture(scope="module")
def weapons():
    return load_masks(MASKS / "weapons.safetensors")[0]


def test_a_second_look_is_at_other_pictures_and_the_larger_share_counts(validator, pipe):
    """Whatever the first look says, what the second one finds counts; both are of the model as it is."""
    shares = [validator.found("weapons", MaskSet({}), look) for look in (0, 1)]
    assert min(shares) > 0.8
    again = confirm(validator, {"weapons": MaskSet({})}, Validation((0.0,), 1.0), ["weapons"])
    assert (again.found, again.right) == ((shares[1],), 1.0)
    config = make_config({**embedded_options(("weapons",)), "validation_prompts": 16, **FEW_STEPS}, "test")
    other = DetectorValidator(pipe, JudgeDetector(Judge(), ()), config)
    assert other.found("weapons", MaskSet({}), 1) > 0.8  # the same two looks by any detector
    for looks in (validator._looks, other._looks):
        first, second = ([one.prompt for one in look["weapons"]] for look in looks)
        assert not set(first) & set(second)


def test_what_is_hardly_found_beside_another_thing_does_not_hide_what_is_found_alone():
    is_there = np.array([True, True, False, False, False, False])
    assert larger_share(is_there, [True, True, True, False, False, False]) == pytest.approx(2 / 3)
    assert larger_share(is_there, [True] * 6) == pytest.approx(1 / 3)  # of a style, all are alone


def test_the_worst_of_each_mask_alone_and_of_all_counts(validator, weapons, wrecking):
    near = {}
    masks = {"weapons": weapons, "fluent-style": wrecking}
    seen = validate(validator, masks, ["weapons"], lambda name: near.update({name: validator.beside_base(name)}))
    assert seen.found[0] <= 0.1
    assert seen.right < 0.3
    assert validator.right(["weapons"], weapons) > 0.8
    assert seen.right <= validator.right(["fluent-style"], wrecking)
    fidelity, traces = (near["weapons"][name] for name in ("fidelity", "traces of it seen"))  # of its mask alone
    assert fidelity["ssim"]["n"] == 8
    assert 0.8 < fidelity["contrast"]["mean"] <= 1
    assert (traces["base"]["n"], traces["masked"]["n"]) == (16, 16)
    assert traces["masked"]["rate"] < 0.5 < traces["base"]["rate"]
    spoilt = validator.beside_base("weapons")["fidelity"]  # of what was drawn last, under the other mask
    assert max(spoilt["ssim"]["mean"], fidelity["two_noises_ssim"]["mean"]) < fidelity["ssim"]["mean"]
    nothing = MaskSet({})
    assert validator.found("weapons", nothing) > 0.9
    assert found(validator, "weapons", {"weapons": nothing, "alcohol": weapons}) > 0.9  # alone it masks nothing


def test_things_of_another_category_are_to_be_preserved_while_its_mask_is_off(validator, weapons):
    assert validator.right(["alcohol"], weapons) < validator.right(["weapons"], weapons)  # alcohol's would keep weapons


def test_a_mask_beside_it_may_erase_what_the_judge_does_not_know(validator, weapons):
    assert validator.right(["rhinos"], weapons) == validator.right([], weapons)


def test_neutral_things_that_a_category_erases_are_not_to_be_preserved():
    options = embedded_options(["weapons"])
    vehicles = CategoryConfig(concepts={"automobile": ("a car",), "bus": ("a bus",)}, anchor="nothing")
    config = make_config({**options, "categories": {"vehicles": vehicles}}, "test")
    assert erased_things(config, {"alcohol": ("alcohol",), "pets": ("cat",)})["pets"] == {"cat"}
    validator = JudgeValidator(None, Judge(), config, {"pets": ("cat",)})
    asked = {ask.concept for ask in validator._alone} | {ask.other for ask in validator._beside}
    assert asked
    assert not asked & {"automobile", "bus", "cat"}
    everything = {concept.name: (concept.words,) for concept in known_concepts()}
    all_of_them = make_config({**options, "categories": {"all": CategoryConfig(concepts=everything)}}, "test")
    with pytest.raises(ConfigError, match="at least two neutral concepts"):
        erased_things(all_of_them, {})


def test_thresholds_of_a_detector_come_from_pictures_without_what_is_erased(pipe):
    """Things to preserve also stand beside weapons, and in the style: above those scores next to nothing is found."""
    detector = JudgeDetector(Judge(), vocabulary().styles)
    detector.is_calibrated = False  # as any detector that a user brings
    config = make_config({**embedded_options(NAMES), "validation_prompts": 12, "batch": 12, **FEW_STEPS}, "test")
    validator = DetectorValidator(pipe, detector, config)
    for name in NAMES:
        seen = validator.calibrations[name]
        assert seen.overall.value > 0.9, name
        assert sum(rate.hits for rate in seen.false_alarms.values()) == 0
        assert validator.found(name, MaskSet({})) == seen.overall.value
