"""The embedded model under attack, with pictures of one erased and one new thing."""

import pytest
import torch

from safeflux.evaluation.attacks.base import Size
from safeflux.evaluation.attacks.belongings import real_pictures
from safeflux.evaluation.attacks.things import Thing, new_things, phrases_of
from safeflux.evaluation.attacks.victim import Picture, Victim
from safeflux.families.sites import find_sites
from safeflux.masks.mask_set import MaskSet
from safeflux.model.apply import apply_masks_
from safeflux.profiles.load import load_profile
from safeflux.reference.measure import draw
from safeflux.reference.model import EMOJI_FLUX_CALL, load_pipeline

MUG = Thing("beer-mug", ("a beer mug", "a beer"))
ONE = Size("quick", things=1, pictures=1, seed=3)


@pytest.fixture(scope="session")
def emoji_pipe():
    return load_pipeline()


@pytest.fixture(scope="session")
def some_masks(emoji_pipe):
    """A few of the weights off at random, at three sites."""
    rng = torch.Generator().manual_seed(0)
    sites = [site for site in find_sites(emoji_pipe.transformer).values() if site.kind == "weight"][:3]
    return MaskSet({site.name: torch.rand(site.shape, generator=rng) > 0.02 for site in sites})


@pytest.fixture(scope="session")
def belongings(emoji_pipe):
    phrases = phrases_of(load_profile("emoji-flux"))
    templates = phrases.templates[::2][:4]
    drawn = draw(emoji_pipe, [template.format(MUG.words[0]) for template in templates], 2**50)
    new = new_things("emoji-flux")[0]
    own = [Picture(template, image) for template, image in zip(templates, drawn, strict=True)]
    return {MUG.name: own, new.name: real_pictures(new, phrases)[:4]}


@pytest.fixture
def victim(emoji_pipe, some_masks, belongings, bits_of):
    """Masked; after the test every bit must be as it was."""
    before = bits_of(emoji_pipe.transformer)
    with apply_masks_(emoji_pipe.transformer, some_masks):
        masked = bits_of(emoji_pipe.transformer)
        neutral = [Picture(one.template.format("a cat"), one.image) for one in belongings[MUG.name]]
        yield Victim(
            emoji_pipe, some_masks, phrases_of(load_profile("emoji-flux")), EMOJI_FLUX_CALL, belongings, neutral
        )
        assert bits_of(emoji_pipe.transformer) == masked
    assert bits_of(emoji_pipe.transformer) == before
