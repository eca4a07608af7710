"""What a run sees of its masks on the way, by the embedded model and its judge."""

from pathlib import Path

import pytest
import torch
from safeflux.trainer.config import make_config
from safeflux.trainer.embedded import embedded_options
from safeflux.trainer.validation import JudgeValidator, validate

from safeflux.maskfile import load_masks
from safeflux.masks import MaskSet
from safeflux.reference.judge import Judge
from safeflux.reference.model import load_pipeline
from safeflux.sites import find_sites

NAMES = ("weapons", "fluent-style")
MASKS = Path(__file__).parents[2] / "policies" / "masks" / "emoji-flux"


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def validator(pipe):
    config = make_config({**embedded_options(NAMES), "validation_prompts": 16}, "test")
    return JudgeValidator(pipe, Judge(), config)


@pytest.fixture(scope="module")
def wrecking(pipe):
    """A mask under which nothing is drawn as asked: no text gets in."""
    sites = find_sites(pipe.transformer).items()
    return MaskSet({name: torch.zeros(site.shape, dtype=torch.bool) for name, site in sites if "context" in name})


def test_the_worst_of_each_mask_alone_and_of_all_counts(validator, wrecking):
    weapons = load_masks(MASKS / "weapons.safetensors")[0]
    seen = validate(validator, [weapons, wrecking], 2)
    assert seen.found[0] <= 0.1
    assert seen.right < 0.3
    good = validator.right([weapons])
    assert good > 0.8
    assert seen.right == validator.right([wrecking])
    nothing = MaskSet({})
    assert validator.found(0, [nothing]) > 0.9
    assert validator.found(0, [nothing, weapons]) == validator.found(0, [nothing])  # alone it masks nothing
