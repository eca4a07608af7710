"""A small vocabulary, and the folder of a run with its art, made up."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.emoji_flux.latents import CHANNELS, Codec, bank_of
from safeflux.reference.vocabulary import Vocabulary, vocabulary

WORDS = """
styles: [noto, fluent]
backgrounds: {white: [250, 250, 250], blue: [120, 175, 235]}
targets: {}
concepts:
  sheep: {icon: ewe, synonyms: [lamb]}
  cat: {}
  dog: {}
"""


@pytest.fixture
def words(tmp_path: Path) -> Vocabulary:
    (tmp_path / "vocabulary.yaml").write_text(WORDS)
    return vocabulary(tmp_path / "vocabulary.yaml")


@pytest.fixture
def out(tmp_path: Path, words: Vocabulary) -> Path:
    """A run's folder with the art, the code and the bank of the small vocabulary."""
    icons = np.random.default_rng(0).integers(0, 256, (3, 2, 128, 128, 4), dtype=np.uint8)
    np.savez(tmp_path / "art.npz", icons=icons)
    basis = torch.linalg.qr(torch.randn(192, CHANNELS, generator=torch.Generator().manual_seed(0)))[0]
    codec = Codec(torch.zeros(192), basis, basis.T)
    torch.save(vars(codec), tmp_path / "codec.pt")
    torch.save(bank_of(codec, tmp_path / "art.npz", words), tmp_path / "bank.pt")
    return tmp_path
