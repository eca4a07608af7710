"""The recipe of the second architecture: a few steps of it, and what they leave, in the classes of diffusers."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from safeflux.trainer.asked.config import make_config
from safeflux.trainer.asked.options import options_of, text_layers_of
from safeflux.trainer.sampling.pipelines import encode, sampler_of
from safeflux.trainer.sampling.rollout import rollout

from benchmarks.emoji_flux.fit import fit
from benchmarks.emoji_flux.latents import Bank, unpack
from benchmarks.emoji_flux2 import export
from benchmarks.emoji_flux2.flow import flow_loss
from benchmarks.emoji_flux2.latents import flux2_vae, normalised
from benchmarks.emoji_flux2.network import TEXT_TOKENS, EmojiFlux2, tokenizer_of
from safeflux.families.sites import find_sites
from safeflux.packs.load import load_packs
from safeflux.profiles.load import load_profile
from safeflux.reference.model import EMOJI_FLUX, load_pipeline
from safeflux.reference.vocabulary import Vocabulary, caption, vocabulary

PROMPTS = ["a cat, noto style, blue background", "a dog"]


@pytest.fixture(scope="module")
def embedded() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(EMOJI_FLUX / "vae")


def test_no_caption_is_cut_off_and_every_word_is_known():
    words = vocabulary()
    tokenizer, (one, other) = tokenizer_of(words), sorted((c.words for c in words.concepts), key=lambda w: -len(w))[:2]
    longest = caption([one, other], words.styles[0], words.background_names[0])
    chat = tokenizer.apply_chat_template([{"role": "user", "content": longest.capitalize()}], tokenize=False)
    ids = tokenizer(chat).input_ids
    assert len(ids) <= TEXT_TOKENS
    assert tokenizer.unk_token_id not in ids
    assert ids.count(tokenizer.eos_token_id) == 1


@torch.no_grad()
def test_the_pipeline_decodes_normalised_latents_to_the_pictures_that_they_are_of(words: Vocabulary, embedded):
    """An untrained transformer predicts no velocity: the pipeline draws the latents that it is given."""
    codes = torch.randn(2, 16, 128, generator=torch.Generator().manual_seed(0)) * 2 + 1
    vae = flux2_vae(embedded, codes)
    pipe = export.assemble(EmojiFlux2(words).eval(), vae)
    grids = normalised(codes, vae).mT.unflatten(2, (4, 4))
    drawn = pipe(prompt=PROMPTS, latents=grids, output_type="pt", **{**export.CALL, "num_inference_steps": 1}).images
    expected = (embedded.decode(unpack(codes)).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-4)


def test_a_run_leaves_a_pipeline_and_a_profile_that_training_draws_the_same_with(out: Path, words, embedded):
    torch.manual_seed(0)
    model, bank = EmojiFlux2(words), Bank(out / "bank.pt", words)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit("flow", out, model, lambda step: flow_loss(model, bank, 2, step), 5, 0.1, 0.0, dtype=torch.float32)
    learned = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert learned == {"text_encoder", "transformer"}

    folder = out / export.NAME
    export.assemble(export.trained(out, words), flux2_vae(embedded, torch.randn(2, 16, 128))).save_pretrained(folder)
    (out / "own.yaml").write_text(yaml.safe_dump(export.profile_of(folder).model_dump(mode="json", exclude_none=True)))
    profile, pipe = load_profile(str(out / "own.yaml")), load_pipeline(folder)
    assert find_sites(pipe.transformer).family == "flux2"

    config = make_config(options_of(profile, load_packs(["emoji:weapons"])), "test")
    layers = text_layers_of(config)
    sampler = sampler_of(pipe, steps=2, height=64, width=64, layers=layers)
    noise, condition = sampler.noise(2, seed=1), encode(pipe, PROMPTS, TEXT_TOKENS, layers=layers)
    with torch.no_grad():
        ours = rollout(pipe.transformer, sampler, noise, condition)
    call = {**profile.call, "num_inference_steps": 2, "output_type": "latent"}
    theirs = pipe(prompt=PROMPTS, latents=noise.mT.unflatten(2, (4, 4)), **call).images
    drawn = pipe._pack_latents(pipe._patchify_latents(theirs))
    torch.testing.assert_close(normalised(drawn, pipe.vae), ours, rtol=1e-4, atol=1e-4)
