"""The latent code of a picture, and the bank of codes that the flow trains on.

    python -m benchmarks.emoji_flux.latents --out runs/emoji_flux

The code is fixed and linear: the 32 principal components of 8 x 8 pixel patches, each divided by its standard
deviation to the power 0.6 (so that strong components stay the stronger ones), then brought to unit variance together.
The AutoencoderKL learns to read and to write this code (`vae.py`), so the flow need not wait for it. Latents are
packed as FluxPipeline packs them: (32 channels, 8, 8) -> (16 tokens, 128).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch

from safeflux.reference.vocabulary import Vocabulary, vocabulary

from .options import out_option, vocabulary_option
from .scenes import NOTHING, STEADY, Renderer, Scene, random_scene

SEED = 11
CHANNELS, PATCH = 32, 8
FIT_PICTURES = 8_000


@dataclass(frozen=True)
class Codec:
    """The linear code: `mean` (192,), `forward` (192, 32), `backward` (32, 192)."""

    mean: torch.Tensor
    forward: torch.Tensor
    backward: torch.Tensor

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, 64, 64) in [-1, 1] -> (B, 32, 8, 8)."""
        return ((patches_of(images) - self.mean) @ self.forward).permute(0, 3, 1, 2).contiguous()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 32, 8, 8) -> (B, 3, 64, 64): the least-squares picture, which the trained decoder improves on."""
        b, _, h, w = latents.shape
        pixels = latents.permute(0, 2, 3, 1) @ self.backward + self.mean
        return pixels.view(b, h, w, 3, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5).reshape(b, 3, h * PATCH, w * PATCH)

    @classmethod
    def fit(cls, images: torch.Tensor) -> Codec:
        """Principal components of the pictures' patches."""
        patches = patches_of(images).reshape(-1, 3 * PATCH * PATCH).double()
        variances, vectors = torch.linalg.eigh(torch.cov(patches.T))
        deviations, basis = variances[-CHANNELS:].flip(0).sqrt(), vectors[:, -CHANNELS:].flip(1)
        scale = deviations**0.4
        scale = deviations / scale * scale.square().mean().sqrt()
        return cls(patches.mean(0).float(), (basis / scale).float(), (basis * scale).T.float())

    @classmethod
    def load(cls, out: Path) -> Codec:
        """From `codec.pt`."""
        return cls(**torch.load(out / "codec.pt", weights_only=True))


def patches_of(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, H / 8, W / 8, 192)."""
    b, _, h, w = images.shape
    patches = images.view(b, 3, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, h // PATCH, w // PATCH, 3 * PATCH * PATCH)


def pictures(renderer: Renderer, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[Scene]]:
    """`count` random scenes, half of them pairs, as float32 (count, 3, 64, 64) in [-1, 1], and what they show."""
    scenes = [random_scene(renderer.words, rng, pair=bool(k % 2)) for k in range(count)]
    return tensor_of([renderer.draw(scene, rng) for scene in scenes]), scenes


def tensor_of(drawn: list[np.ndarray]) -> torch.Tensor:
    """uint8 pictures (64, 64, 3) -> float32 (B, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, 8, 8) -> (B, 16, 4 C), in FluxPipeline's order."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def unpack(tokens: torch.Tensor) -> torch.Tensor:
    """The reverse of `pack`: (B, 16, 4 C) -> (B, C, 8, 8)."""
    b, _, c = tokens.shape
    return tokens.view(b, 4, 4, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, 8, 8)


class Bank:
    """Every picture of `STEADY` placement in code: whole for one object, and as the half that it is of a pair.

    The code is one of patches, none of which lies across the middle, so a pair's code is those of its halves side by
    side: all pairs can be drawn, and none has to be kept.
    """

    def __init__(self, path: Path, words: Vocabulary, single_share: float = 0.5) -> None:
        state = torch.load(path, weights_only=True)
        self._wholes, self._halves, self._words, self._share = state["wholes"], state["halves"], words, single_share

    def draw(self, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[Scene]]:
        """`count` latents, float32 (count, 16, 128), and what they show."""
        scenes = [random_scene(self._words, rng, pair=bool(rng.random() >= self._share)) for _ in range(count)]
        downs = rng.integers(len(self._wholes), size=(count, 2))
        return torch.stack([self.code(scene, down) for scene, down in zip(scenes, downs, strict=True)]), scenes

    def nearest(self, latents: torch.Tensor, backgrounds: Sequence[int]) -> list[tuple[int, int]]:
        """Concept and style of the one-object picture whose code is nearest to each latent, on a given background."""
        found = []
        for latent, background in zip(latents, backgrounds, strict=True):
            known = self._wholes[:, :, :, background].float().flatten(-2)
            place = int((known - latent.flatten()).square().sum(-1).argmin())
            _, concept, style = np.unravel_index(place, known.shape[:-1])
            found.append((int(concept), int(style)))
        return found

    def code(self, scene: Scene, downs: Sequence[int]) -> torch.Tensor:
        """The code of one scene, float32 (16, 128); `downs` are the places of its objects' shifts in `STEADY`."""
        look = scene.style, scene.background
        if len(scene.concepts) == 1:
            return self._wholes[downs[0], scene.concepts[0], *look].float()
        parts = [self._halves[down, concept, *look] for down, concept in zip(downs, scene.concepts, strict=True)]
        return torch.cat(parts, dim=1).flatten(0, 1).float()


def coded(codec: Codec, renderer: Renderer, scenes: Sequence[Scene]) -> torch.Tensor:
    """The packed codes of scenes, bf16 (B, 16, 128); `renderer` leaves no choice of place."""
    fixed = np.random.default_rng(0)
    parts = [
        pack(codec.encode(tensor_of([renderer.draw(scene, fixed) for scene in scenes[start : start + 256]]))).bfloat16()
        for start in range(0, len(scenes), 256)
    ]
    return torch.cat(parts)


def bank_of(codec: Codec, art: Path, words: Vocabulary) -> dict[str, torch.Tensor]:
    """All codes, bf16: `wholes` (shifts, concepts, styles, backgrounds, 16, 128), `halves` (..., 4, 2, 128).

    The concepts of both end with the place of no concept, which is what the index `NOTHING` finds.
    """
    sizes = len(words.concepts) + 1, len(words.styles), len(words.backgrounds)
    looks = [((c if c < sizes[0] - 1 else NOTHING), s, b) for c, s, b in np.ndindex(sizes)]
    wholes, halves = [], []
    for down in STEADY.down:
        renderer = Renderer(art, words, replace(STEADY, down=(down,)))
        wholes.append(coded(codec, renderer, [Scene((c,), s, b) for c, s, b in looks]).view(*sizes, 16, -1))
        pairs = coded(codec, renderer, [Scene((c, NOTHING), s, b) for c, s, b in looks])
        halves.append(pairs.view(*sizes, 4, 4, -1)[..., :2, :].clone())
    return {"wholes": torch.stack(wholes), "halves": torch.stack(halves)}


@click.command(help=__doc__)
@out_option
@vocabulary_option
@torch.no_grad()
def main(out: Path, vocabulary_path: Path | None) -> None:
    """Fit the code, code all things, save `codec.pt` and `bank.pt`."""
    words, rng = vocabulary(vocabulary_path), np.random.default_rng(SEED)
    if not (out / "codec.pt").exists():
        renderer = Renderer(out / "art.npz", words)
        torch.save(vars(Codec.fit(pictures(renderer, FIT_PICTURES, rng)[0])), out / "codec.pt")
    bank = bank_of(Codec.load(out), out / "art.npz", words)
    torch.save(bank, out / "bank.pt")
    wholes = bank["wholes"]
    click.echo(f"{wholes[..., 0, 0].numel()} things coded, standard deviation {wholes[0].float().std():.3f}")


if __name__ == "__main__":
    main()
