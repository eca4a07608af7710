"""The latent code of a picture, and the bank of coded scenes that the flow trains on.

    python -m benchmarks.emoji_flux.latents --out runs/emoji_flux

The code is fixed and linear: the 32 principal components of 8 x 8 pixel patches, each divided by its standard
deviation to the power 0.6 (so that strong components stay the stronger ones), then brought to unit variance together.
The AutoencoderKL learns to read and to write this code (`vae.py`), so the flow need not wait for it. Latents are
packed as FluxPipeline packs them: (32 channels, 8, 8) -> (16 tokens, 128).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from .scenes import NOTHING, STEADY, Renderer, Scene, random_scene

SEED = 11
SINGLES, PAIRS = 64_000, 128_000
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
        return ((_patches(images) - self.mean) @ self.forward).permute(0, 3, 1, 2).contiguous()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 32, 8, 8) -> (B, 3, 64, 64): the least-squares picture, which the trained decoder improves on."""
        b, _, h, w = latents.shape
        pixels = latents.permute(0, 2, 3, 1) @ self.backward + self.mean
        return pixels.view(b, h, w, 3, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5).reshape(b, 3, h * PATCH, w * PATCH)

    @classmethod
    def fit(cls, images: torch.Tensor) -> Codec:
        """Principal components of the pictures' patches."""
        patches = _patches(images).reshape(-1, 3 * PATCH * PATCH).double()
        variances, vectors = torch.linalg.eigh(torch.cov(patches.T))
        deviations, basis = variances[-CHANNELS:].flip(0).sqrt(), vectors[:, -CHANNELS:].flip(1)
        scale = deviations**0.4
        scale = deviations / scale * scale.square().mean().sqrt()
        return cls(patches.mean(0).float(), (basis / scale).float(), (basis * scale).T.float())

    @classmethod
    def load(cls, out: Path) -> Codec:
        """From `codec.pt`."""
        return cls(**torch.load(out / "codec.pt", weights_only=True))


def _patches(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, H / 8, W / 8, 192)."""
    b, _, h, w = images.shape
    patches = images.view(b, 3, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, h // PATCH, w // PATCH, 3 * PATCH * PATCH)


def pictures(renderer: Renderer, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[Scene]]:
    """`count` random scenes, half of them pairs, as float32 (count, 3, 64, 64) in [-1, 1], and what they show."""
    scenes = [random_scene(rng, pair=bool(k % 2)) for k in range(count)]
    return tensor_of([renderer.draw(scene, rng) for scene in scenes]), scenes


def tensor_of(drawn: list[np.ndarray]) -> torch.Tensor:
    """uint8 pictures (64, 64, 3) -> float32 (B, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, 8, 8) -> (B, 16, 4 C), in FluxPipeline's order."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


class Bank:
    """Coded scenes; half of every drawn batch is one-object scenes, half two-object scenes."""

    def __init__(self, path: Path, single_share: float = 0.5) -> None:
        state = torch.load(path, weights_only=True, mmap=True)
        self._latents, self._scenes, self._singles = state["latents"], state["scenes"], int(state["singles"])
        self._share = single_share

    def draw(self, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[Scene]]:
        """`count` latents, float32 (count, 16, 128), and what they show."""
        single = rng.random(count) < self._share
        index = np.where(
            single, rng.integers(self._singles, size=count), rng.integers(self._singles, len(self._latents), size=count)
        )
        rows = self._scenes[torch.from_numpy(index)].tolist()
        scenes = [
            Scene(tuple(row[: 1 if k < self._singles else 2]), row[2], row[3])
            for k, row in zip(index, rows, strict=True)
        ]
        return self._latents[torch.from_numpy(index)].float(), scenes


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/emoji_flux"), show_default=True)
@torch.no_grad()
def main(out: Path) -> None:
    """Fit the code, draw and code the scenes, save `codec.pt` and `bank.pt`."""
    renderer, rng = Renderer(out / "art.npz", STEADY), np.random.default_rng(SEED)
    if not (out / "codec.pt").exists():
        torch.save(vars(Codec.fit(pictures(Renderer(out / "art.npz"), FIT_PICTURES, rng)[0])), out / "codec.pt")
    codec = Codec.load(out)
    count = SINGLES + PAIRS
    latents = torch.empty(count, 16, 4 * CHANNELS, dtype=torch.bfloat16)
    table = torch.empty(count, 4, dtype=torch.int16)
    for start in range(0, count, 256):
        scenes = [random_scene(rng, pair=k >= SINGLES) for k in range(start, min(start + 256, count))]
        images = tensor_of([renderer.draw(scene, rng) for scene in scenes])
        part = slice(start, start + len(scenes))
        latents[part] = pack(codec.encode(images)).bfloat16()
        table[part] = torch.tensor(
            [(*(*scene.concepts, NOTHING)[:2], scene.style, scene.background) for scene in scenes]
        )
    torch.save({"latents": latents, "scenes": table, "singles": SINGLES}, out / "bank.pt")
    click.echo(f"{count} scenes, standard deviation of the code {latents[:5000].float().std():.3f}")


if __name__ == "__main__":
    main()
