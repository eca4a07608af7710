"""Batches in parts, and masks that exchange bits among those that were off: runs of many masks."""

import numpy as np
import pytest
from safeflux.trainer.asked.config import make_config
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.run.checkpoint import config_digest
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.session import run

from safeflux.errors import ConfigError
from safeflux.masks.file import load_masks
from tests.helpers.runs import MASKS, SETTINGS

NAMES = ["tobacco", "drugs"]
IN_PARTS = [*SETTINGS, "batch=4", "many.parts=2", "saliency.rounds=2", "saliency.erase_batches=2", "minimise=false"]


@pytest.mark.slow  # two runs of the trainer
def test_masks_learned_in_parts_are_repaired_within_their_bits_and_a_repair_resumes(tmp_path):
    def train(folder, settings, given, **options):
        return run(plan_run(NAMES, None, settings, given), tmp_path / folder, lambda report, most: None, **options)

    given = {"initial": [MASKS / f"{name}.safetensors" for name in NAMES]}
    settings = [*IN_PARTS, "many.within_initial=true", "saliency.bits_on=30", "saliency.bits_off=15"]
    whole = train("whole", settings, given)
    with pytest.raises(KeyboardInterrupt):
        train("cut", settings, given, stops=lambda: True)
    assert train("cut", settings, given).sha256 == whole.sha256
    before, after = ([load_masks(path)[0] for path in paths] for paths in (given["initial"], whole.paths.values()))
    assert before != after
    for masks in after:
        for site, keep in masks.items():
            union = np.logical_or.reduce([~one[site] for one in before if site in one])
            assert not (~keep & ~union).any()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"many": {"parts": 5}}, "expected a divisor of batch"),
        ({"many": {"parts": 4}, "method": "gates"}, "expected 1 but for the method saliency"),
        ({"many": {"parts": 4}, "erase_terms": {"own": 1}}, "the term named alone, got 4"),
        ({"many": {"within_initial": True}}, "expected masks in initial"),
    ],
)
def test_what_does_not_go_with_parts_is_an_error(options, fault):
    with pytest.raises(ConfigError, match=fault):
        make_config({**embedded_options(NAMES), **options}, "test")


def test_masks_made_before_a_step_of_fine_tuning_was_an_option_keep_their_digest():
    def digest(**noised):
        return config_digest(
            make_config({**embedded_options(NAMES), "erase_terms": {"own": 1}, "noised": noised}, "test")
        )

    assert digest(reopened=0.15) == "66bd72ae015ba824cec5891f79ed5949b1c12376073de63c096066277e47c9fb"
    assert digest(reopened=0.15, tuned_rate=0.1) == digest(reopened=0.15) != digest(reopened=0.15, tuned=0.5)


def test_masks_made_before_there_were_parts_keep_their_digest():
    plain = make_config(embedded_options(NAMES), "test")
    named = make_config({**embedded_options(NAMES), "many": {"parts": 1}}, "test")
    parts = make_config({**embedded_options(NAMES), "many": {"parts": 2}}, "test")
    assert config_digest(plain) == config_digest(named) != config_digest(parts)


def test_masks_made_before_the_loss_of_preservation_was_an_option_keep_their_digest():
    plain, absolute, relative = (
        config_digest(make_config({**embedded_options(NAMES), **options}, "test"))
        for options in ({}, {"preserve_loss": "absolute"}, {"preserve_loss": "relative"})
    )
    assert plain == absolute != relative
