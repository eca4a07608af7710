"""Gradients through the pipeline of diffusers, and what is learned or searched with them."""

import numpy as np
import pytest
import torch

from safeflux.evaluation.attacks.kinds import gradients
from safeflux.evaluation.attacks.kinds.learned import AllTokens, EndToEnd, NewWord, NewWords, PooledVector, Shift
from safeflux.evaluation.attacks.kinds.search import Place, ProjectWords, SwapWords
from safeflux.evaluation.attacks.kinds.words import single_tokens
from safeflux.reference.model import EMOJI_FLUX_CALL
from tests.evaluation.attacks.conftest import MUG, ONE

PROMPTS = ["a beer mug, noto style, blue background", "a cat, fluent style, white background"]


@pytest.fixture
def noise():
    return torch.randn(2, 16, 128, generator=torch.Generator().manual_seed(1))


def test_the_sampler_is_that_of_the_pipeline_and_has_gradients(victim, noise):
    encoded = gradients.encode(victim, PROMPTS)
    expected = victim.pipe(PROMPTS, latents=noise, output_type="latent", **EMOJI_FLUX_CALL).images
    tokens = encoded[0].detach().requires_grad_(True)
    got = gradients.run(victim, noise, (tokens, encoded[1]))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    (slope,) = torch.autograd.grad(got.square().mean(), tokens)
    assert slope.abs().sum() > 0


def test_the_loss_is_the_error_of_the_velocity_at_the_samplers_own_levels(victim, belongings, noise):
    loss = gradients.StepLoss(victim, belongings[MUG.name])
    assert loss.sigmas == pytest.approx([1 - k / 8 for k in range(8)])  # this scheduler does not shift
    encoded = gradients.encode(victim, [PROMPTS[0]] * 2)
    got = float(loss([0, 2], encoded, np.random.default_rng(5)).detach())
    rng = np.random.default_rng(5)
    sigma, picture = loss.sigmas[int(rng.integers(8))], loss.latents[[0, 2]]
    e = torch.from_numpy(rng.standard_normal(picture.shape)).float()
    with torch.no_grad():
        velocity = victim.pipe.transformer(
            hidden_states=(1 - sigma) * picture + sigma * e,
            timestep=torch.full((2,), sigma),
            encoder_hidden_states=encoded[0],
            pooled_projections=encoded[1],
            txt_ids=torch.zeros(encoded[0].shape[1], 3),
            img_ids=victim.pipe._prepare_latent_image_ids(1, 4, 4, torch.device("cpu"), torch.float32),
            return_dict=False,
        )[0]
    assert got == pytest.approx(float(((velocity - (e - picture)) ** 2).mean()), rel=1e-4)


def test_new_words_are_their_own_words_before_they_are_learned_and_reach_both_encoders(victim):
    soft = NewWords(victim, 2)
    text = PROMPTS[0].replace("a beer mug", soft._words)
    for got, expected in zip(
        soft.encode(["{}, noto style, blue background"]), gradients.encode(victim, [text]), strict=True
    ):
        torch.testing.assert_close(got, expected)
    tokens, pooled = soft.encode(["{}, noto style, blue background"])
    slopes = torch.autograd.grad(tokens.sum() + pooled.square().sum(), soft.parameters)
    assert all(slope.abs().sum() > 0 for slope in slopes)
    with torch.no_grad():
        soft.parameters[0].add_(1)
    assert not torch.equal(soft.encode(["{}"])[1], gradients.encode(victim, [soft._words])[1])
    assert torch.equal(gradients.encode(victim, PROMPTS)[1], gradients.encode(victim, PROMPTS)[1])  # no hook is left


def test_a_shift_of_nothing_is_the_prompt_and_touches_only_what_is_free(victim):
    template = "{}, noto style, blue background"
    plain = gradients.encode(victim, PROMPTS[:1])
    few, pooled = (Shift(victim, "a beer mug", count=c, has_pooled=p) for c, p in ((4, False), (0, True)))
    assert [len(soft.parameters) for soft in (few, pooled)] == [1, 1]
    with torch.no_grad():
        few.parameters[0].add_(1)
        pooled.parameters[0].add_(1)
    tokens, vector = few.encode([template])
    torch.testing.assert_close(vector, plain[1])
    torch.testing.assert_close(tokens[:, 4:], plain[0][:, 4:])
    torch.testing.assert_close(tokens[:, :4], plain[0][:, :4] + 1)
    torch.testing.assert_close(pooled.encode([template]), (plain[0], plain[1] + 1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NewWord, PooledVector, AllTokens, EndToEnd])
def test_what_is_learned_depends_on_the_number_of_gradients_and_the_seed_alone(victim, kind):
    class Short(kind):
        def budgets(self, level):
            return (1, 4)

    first, second = Short().run(victim, MUG, ONE)
    assert [len(shot.images) for shot in (first, second)] == [1, 1]
    assert first.images[0].tobytes() != second.images[0].tobytes()
    again = list(Short().run(victim, MUG, ONE))
    assert again[1].images[0].tobytes() == second.images[0].tobytes()  # by its seed
    assert all(not p.grad for p in victim.pipe.text_encoder.parameters())


def test_a_swap_of_words_never_raises_the_error_of_its_own_batch(victim, belongings):
    place, loss = Place(victim), gradients.StepLoss(victim, belongings[MUG.name])

    def error(candidate, state):
        again = np.random.default_rng(0)
        again.bit_generator.state = state
        places = [int(k) for k in again.integers(4, size=4)]
        place.put(candidate)
        with torch.no_grad():
            return float(loss(places, place.soft.encode([loss.pictures[k].template for k in places]), again))

    rng, words, has_moved = np.random.default_rng(0), [0, 1, 2, 3], False
    for _ in range(4):
        state = rng.bit_generator.state
        better = SwapWords()._step(place, loss, words, rng)
        assert sum(a != b for a, b in zip(words, better, strict=True)) <= 1
        assert better == words or error(better, state) < error(words, state)
        words, has_moved = better, has_moved or better != words
    assert has_moved


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SwapWords, ProjectWords])
def test_words_that_were_found_can_be_typed(victim, kind):
    class Short(kind):
        def budgets(self, level):
            return (2,)

    (shot,) = Short().run(victim, MUG, ONE)
    assert len(shot.note.split()) == 4
    assert set(shot.note.split()) <= set(single_tokens(victim.pipe))


def test_other_pipelines_are_left_out_with_a_reason(emoji_pipe):
    assert gradients.refusal(emoji_pipe) is None
    assert gradients.refusal(object()) == gradients.REFUSAL
