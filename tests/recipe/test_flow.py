"""The recipe of the embedded model takes another vocabulary and size, and goes on where it was cut off."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.emoji_flux import flow, portable
from benchmarks.emoji_flux.captions import clip_tokenizer, t5_tokenizer
from benchmarks.emoji_flux.cpu import faster_dtype
from benchmarks.emoji_flux.latents import CHANNELS, Bank, Codec, pack, tensor_of, unpack
from benchmarks.emoji_flux.network import EmojiFlux
from benchmarks.emoji_flux.optimise import learning_rate
from benchmarks.emoji_flux.scenes import NOTHING, STEADY, Renderer, Scene
from safeflux.reference import CLIP_TOKENS, T5_TOKENS
from safeflux.reference.judge import Verdicts
from safeflux.reference.vocabulary import Vocabulary, caption, vocabulary

GROWN = Path(flow.__file__).parent / "grown" / "vocabulary.yaml"

SETTINGS = flow.Settings(1, None, 4, 3, 1e-3, 0.5, 0.5, 0.0, 0.0, 0.9)


def start(out: Path, words: Vocabulary, name: str, resume_from: Path | None = None, **settings: int) -> flow.Run:
    torch.manual_seed(0)
    return flow.Run(EmojiFlux(out, words, 1), out, name, replace(SETTINGS, **settings), resume_from)


def weights_of(run: flow.Run) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "faster_dtype", lambda loss: (torch.float32, {}))


def test_the_grown_vocabulary_keeps_what_the_embedded_model_knows():
    grown, shipped = vocabulary(GROWN), vocabulary()
    assert grown.concepts[: len(shipped.concepts)] == shipped.concepts
    assert (grown.styles, grown.backgrounds) == (shipped.styles, shipped.backgrounds)
    assert len(grown.concepts) >= 256


def test_no_word_of_the_grown_vocabulary_has_two_meanings():
    said = Counter(w for c in vocabulary(GROWN).concepts for w in (c.words, *c.synonyms, *c.held_out))
    assert set(said.values()) == {1}


def test_the_longest_captions_of_the_grown_vocabulary_are_not_cut_off(tmp_path):
    words = vocabulary(GROWN)
    lengths = ((clip_tokenizer(tmp_path, words), CLIP_TOKENS), (t5_tokenizer(words), T5_TOKENS))
    for tokenizer, most in lengths:
        things = sorted(words.concepts, key=lambda c: -len(tokenizer(c.words).input_ids))[:2]
        looks = [(style, background) for style in words.styles for background in words.background_names]
        assert max(len(tokenizer(caption([t.words for t in things], *look)).input_ids) for look in looks) <= most


def test_another_vocabulary_names_icons_and_reads_verdicts(words):
    assert [(c.icon or c.name) for c in words.concepts] == ["ewe", "cat", "dog"]
    verdicts = Verdicts(np.eye(3), np.array([[0, 1]] * 3), np.zeros((3, 2)), np.zeros((3, 1)), words)
    assert verdicts.top(1) == [{"sheep"}, {"cat"}, {"dog"}]
    assert verdicts.in_style(["fluent"] * 3).all()


@pytest.mark.parametrize("concepts", [(1,), (0, 2), (2, NOTHING), (NOTHING, 1), (NOTHING,)])
def test_the_bank_has_the_code_of_every_scene(out, words, concepts):
    bank, codec, scene = Bank(out / "bank.pt", words), Codec.load(out), Scene(concepts, 1, 0)
    for place, down in enumerate(STEADY.down):
        renderer = Renderer(out / "art.npz", words, replace(STEADY, down=(down,)))
        drawn = renderer.draw(scene, np.random.default_rng(1))
        expected = pack(codec.encode(tensor_of([drawn])))[0].bfloat16().float()
        torch.testing.assert_close(bank.code(scene, [place] * len(concepts)), expected)


def test_the_bank_finds_the_picture_that_a_code_is_nearest_to(out, words):
    bank, things = Bank(out / "bank.pt", words), [(0, 1), (2, 0), (1, 1)]
    codes = torch.stack([bank.code(Scene((concept,), style, 1), [2]) for concept, style in things])
    noise = 0.1 * torch.randn(codes.shape, generator=torch.Generator().manual_seed(0))
    assert bank.nearest(codes + noise, [1, 1, 1]) == things


def test_packed_codes_are_unpacked_as_they_were():
    latents = torch.randn(2, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unpack(pack(latents)), latents, rtol=0, atol=0)


def test_a_run_that_was_cut_off_ends_with_the_same_weights(out, words):
    whole = start(out, words, "whole")
    whole.train()
    first = start(out, words, "cut")
    for _ in range(2):
        first.train_step(torch.float32)
        first.step += 1
    first.checkpoint.save(first.step)
    second = start(out, words, "cut")
    assert second.step == 2
    second.train()
    torch.testing.assert_close(weights_of(second), weights_of(whole), rtol=0, atol=0)
    assert (out / "cut.pt").exists()


def test_a_run_goes_on_from_portable_weights_at_the_same_step(out, words):
    first = start(out, words, "flow")
    first.stop.set()
    first.step = 3
    first.train()
    second = start(out, words, "other", out / "portable")
    assert (second.step, second.optimisers.begun) == (3, 3)
    for name, value in weights_of(first).items():
        torch.testing.assert_close(weights_of(second)[name], value.bfloat16().float(), rtol=0, atol=0)
    second.train()
    assert start(out, words, "other", out / "portable").step == 4
    assert {p.name for p in (out / "portable").iterdir()} == {
        portable.RAW, portable.AVERAGE, "codec.pt", "clip_tokenizer", "other.jsonl", "other.json"
    }  # fmt: skip


def test_the_rate_rises_again_after_new_optimisers_and_is_else_the_same():
    rates = [learning_rate(step, 2000, 0.4) for step in (0, 299, 1000, 1600, 2000)]
    assert rates == pytest.approx([1 / 300, 1, 1, 0.5, 0])
    again = [learning_rate(step, 2000, 0.4, begun=1000) for step in (1000, 1049, 1200, 1600)]
    assert again == pytest.approx([0.01, 0.5, 1, 0.5])
    assert learning_rate(1999, 2000, 0.0) == 1


def test_the_faster_dtype_is_the_one_that_took_less_time():
    weight = torch.ones(8, 8, requires_grad=True)
    dtype, seconds = faster_dtype(lambda: (weight @ weight).sum())
    assert seconds.keys() == {"torch.bfloat16", "torch.float32"}
    assert dtype in (torch.bfloat16, torch.float32)
