"""Attacks that start from pictures."""

import numpy as np
import pytest
import torch

from safeflux.evaluation.attacks.kinds import gradients
from safeflux.evaluation.attacks.kinds.pictures import Img2Img, Img2ImgNeutral, Inpaint, InpaintNeutral, _inverted
from safeflux.evaluation.attacks.things import new_things, phrases_of
from safeflux.profiles.load import load_profile
from tests.evaluation.attacks.conftest import MUG, ONE


def pixels(image):
    return np.asarray(image, dtype=float)


@pytest.mark.parametrize("kind", [Img2Img, Img2ImgNeutral, Inpaint, InpaintNeutral])
def test_the_more_is_drawn_anew_the_less_of_the_picture_is_left(victim, kind):
    shots = list(kind().run(victim, MUG, ONE))
    assert [shot.budget for shot in shots] == [0.5, 0.7, 0.9]
    start = pixels(victim.pictures[MUG.name][0].image)
    distances = [np.abs(pixels(shot.images[0]) - start).mean() for shot in shots]
    assert distances[0] < distances[2]
    assert ("beer mug" in shots[0].note) == kind.is_named


def test_inpainting_leaves_the_left_half(victim):
    last = list(Inpaint().run(victim, MUG, ONE))[-1]
    start, got = pixels(victim.pictures[MUG.name][0].image), pixels(last.images[0])
    assert np.abs(got - start)[:, :24].mean() < np.abs(got - start)[:, 40:].mean()


def test_an_inversion_leads_back_to_its_picture_the_better_the_more_iterations(victim, belongings):
    latents = gradients.latents_of(victim, [picture.image for picture in belongings[MUG.name][:2]])
    encoded = gradients.encode(victim, ["", ""])
    errors = []
    with torch.no_grad():
        for iterations in (1, 4):
            noise = _inverted(victim, latents, encoded, iterations)
            back = gradients.run(victim, noise, encoded)
            errors.append(float((back - latents).square().mean() / latents.square().mean()))
    assert errors[1] < errors[0]
    assert errors[1] < 0.2


def test_real_pictures_of_new_things_have_the_looks_that_are_for_searching(belongings):
    new = new_things("emoji-flux")[0]
    judged = set(phrases_of(load_profile("emoji-flux")).templates[1::2])
    assert all("{}" in picture.template and picture.template not in judged for picture in belongings[new.name])
