"""The bank of encoded scenes that the flow trains on: packed latents of many random renderings, made once.

    python -m benchmarks.emoji_flux.latents --out runs/emoji_flux

Latents are packed as FluxPipeline packs them: (16 channels, 8, 8) -> (16 tokens, 64).
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from diffusers import AutoencoderKL

from .scenes import NOTHING, Renderer, Scene, random_scene

SEED = 11
SINGLES, PAIRS = 64_000, 128_000


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, 16, 8, 8) -> (B, 16, 64), in FluxPipeline's order."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


class Bank:
    """Encoded scenes; half of every drawn batch is one-object scenes, half two-object scenes."""

    def __init__(self, path: Path, single_share: float = 0.5) -> None:
        state = torch.load(path, weights_only=True, mmap=True)
        self._latents, self._scenes, self._singles = state["latents"], state["scenes"], int(state["singles"])
        self._share = single_share

    def draw(self, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[Scene]]:
        """`count` latents, float32 (count, 16, 64), and what they show."""
        single = rng.random(count) < self._share
        index = np.where(
            single, rng.integers(self._singles, size=count), rng.integers(self._singles, len(self._latents), size=count)
        )
        rows = self._scenes[torch.from_numpy(index)].tolist()
        scenes = [Scene(tuple(row[: 1 if i < self._singles else 2]), row[2], row[3]) for i, row in zip(index, rows, strict=True)]
        return self._latents[torch.from_numpy(index)].float(), scenes


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/emoji_flux"), show_default=True)
@torch.no_grad()
def main(out: Path) -> None:
    """Draw, encode, pack, save `bank.pt`."""
    renderer, rng = Renderer(out / "art.npz"), np.random.default_rng(SEED)
    vae = AutoencoderKL.from_pretrained(out / "vae").to(memory_format=torch.channels_last).eval()
    latents = torch.empty(SINGLES + PAIRS, 16, 64, dtype=torch.bfloat16)
    table = torch.empty(SINGLES + PAIRS, 4, dtype=torch.int16)
    for start in range(0, SINGLES + PAIRS, 256):
        scenes = [random_scene(rng, pair=start + k >= SINGLES) for k in range(min(256, len(latents) - start))]
        pixels = torch.from_numpy(np.stack([renderer.draw(scene, rng) for scene in scenes]))
        images = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            encoded = vae.encode(images).latent_dist.mode()
        latents[start : start + len(scenes)] = pack(encoded.float())
        rows = [(*scene.concepts, NOTHING)[:2] + (scene.style, scene.background) for scene in scenes]
        table[start : start + len(scenes)] = torch.tensor(rows)
        if start % 12_800 == 0:
            click.echo(f"latents {start} of {len(latents)}")
    torch.save({"latents": latents, "scenes": table, "singles": SINGLES}, out / "bank.pt")


if __name__ == "__main__":
    main()
