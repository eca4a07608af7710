"""Train the AutoencoderKL of emoji-flux: the encoder reads the code of `latents.py`, the decoder writes it.

    python -m benchmarks.emoji_flux.vae decoder --out runs/emoji_flux
    python -m benchmarks.emoji_flux.vae encoder --out runs/emoji_flux

The code is given, so the halves learn apart, and neither has a moving target: trained jointly from scratch for the
same time, they were 3 dB worse than the linear code alone. The decoder sees codes with a little noise, as sampled
ones have. Resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from safeflux.reference.vocabulary import vocabulary

from .fit import fit
from .latents import CHANNELS, Codec, pictures
from .options import out_option, vocabulary_option
from .scenes import Renderer

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "latent_channels": CHANNELS,
    "norm_num_groups": 8,
    "sample_size": 64,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": True,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
NOISE = 0.08
"""Standard deviation of the noise on the codes that the decoder learns from, at most."""
SEED = 20261122
Loss = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]


def decoder_loss(vae: AutoencoderKL, codec: Codec) -> Loss:
    """Picture from a slightly noisy code: L1, and L1 of the picture's differences, which keeps edges sharp."""

    def loss(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        codes = codec.encode(images)
        strength = NOISE * torch.rand(len(codes), 1, 1, 1, generator=generator)
        noisy = codes + strength * torch.randn(codes.shape, generator=generator)
        decoded = vae.decode(noisy.to(memory_format=torch.channels_last)).sample.float()
        edges = sum(F.l1_loss(torch.diff(decoded, dim=d), torch.diff(images, dim=d)) for d in (2, 3))
        return F.l1_loss(decoded, images) + edges

    return loss


def encoder_loss(vae: AutoencoderKL, codec: Codec) -> Loss:
    """Mean squared error of the code."""

    def loss(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        return F.mse_loss(vae.encode(images).latent_dist.mean.float(), codec.encode(images))

    return loss


@torch.no_grad()
def fix_spread_(vae: AutoencoderKL) -> None:
    """Make the posterior's spread a constant, and negligible: sampling the encoder's posterior gives its mean."""
    head = vae.encoder.conv_out
    head.weight[CHANNELS:].zero_()
    head.bias[CHANNELS:].fill_(-30.0)


@torch.no_grad()
def quality(vae: AutoencoderKL, codec: Codec, renderer: Renderer, half: str) -> dict[str, float]:
    """Peak signal-to-noise ratio in dB, on 512 held-out pictures: of the linear code and of what is trained by now."""
    images, _ = pictures(renderer, 512, np.random.default_rng((SEED, 1)))
    codes = codec.encode(images)
    decoded = {"linear": codec.decode(codes), "decoder": vae.decode(codes).sample}
    if half == "encoder":
        decoded["encoder and decoder"] = vae.decode(vae.encode(images).latent_dist.mode()).sample
    return {
        name: 10 * torch.log10(4 / F.mse_loss(picture.clamp(-1, 1), images)).item() for name, picture in decoded.items()
    }


@click.command(help=__doc__)
@click.argument("half", type=click.Choice(["decoder", "encoder"]))
@out_option
@vocabulary_option
@click.option(
    "--width", default=128, show_default=True, help="Channels of the coarsest stage, which most weights are of."
)
@click.option("--steps", default=3000, show_default=True, help="Optimiser steps.")
@click.option("--batch", default=32, show_default=True)
@click.option("--lr", default=2e-3, show_default=True)
def main(half: str, out: Path, vocabulary_path: Path | None, width: int, steps: int, batch: int, lr: float) -> None:
    """Train one half of `vae/`."""
    torch.manual_seed(SEED)
    renderer, codec = Renderer(out / "art.npz", vocabulary(vocabulary_path)), Codec.load(out)
    made = (out / "vae").exists()
    widths = [16, 32, 64, width]
    vae = AutoencoderKL.from_pretrained(out / "vae") if made else AutoencoderKL(**CONFIG, block_out_channels=widths)
    vae = vae.to(memory_format=torch.channels_last)
    part: nn.Module = getattr(vae, half)
    loss_of = {"decoder": decoder_loss, "encoder": encoder_loss}[half](vae, codec)

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng((SEED, half == "decoder", step))
        images, _ = pictures(renderer, batch, rng)
        return loss_of(images.to(memory_format=torch.channels_last), rng)

    hours = fit(f"vae_{half}", out, part, loss, steps, lr, decay=1e-3)
    fix_spread_(vae)
    vae.save_pretrained(out / "vae")
    report = {"steps": steps, "hours": hours, "psnr_db": quality(vae, codec, renderer, half)}
    (out / f"vae_{half}.json").write_text(json.dumps(report, indent=1) + "\n")
    click.echo(json.dumps(report))


if __name__ == "__main__":
    main()
