"""Train the AutoencoderKL of emoji-flux (f8, 16 channels) on real renderings.

    python -m benchmarks.emoji_flux.vae --out runs/emoji_flux

Resumes from its checkpoint. At the end the latents' mean and covariance are measured and folded into the two 1x1 convolutions
(`quant_conv`, `post_quant_conv`), so that the flow sees white latents while the network computes the same picture.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from .checkpoint import Checkpoint
from .scenes import Renderer, random_scene

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 64, 128],
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 8,
    "sample_size": 64,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
KL_WEIGHT = 1e-5
SEED = 20261122


def pictures(renderer: Renderer, count: int, rng: np.random.Generator) -> torch.Tensor:
    """`count` random scenes, half of them pairs, as float32 (count, 3, 64, 64) in [-1, 1]."""
    drawn = [renderer.draw(random_scene(rng, pair=bool(k % 2)), rng) for k in range(count)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1


def loss_terms(vae: AutoencoderKL, images: torch.Tensor, decoder_only: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstruction (L1, and L1 of image gradients, which keeps edges sharp) and KL to the standard normal."""
    with torch.set_grad_enabled(not decoder_only):
        posterior = vae.encode(images).latent_dist
    latents = posterior.mode() if decoder_only else posterior.sample()
    decoded = vae.decode(latents).sample.float()
    edges = sum(F.l1_loss(torch.diff(decoded, dim=d), torch.diff(images, dim=d)) for d in (2, 3))
    coarse = F.l1_loss(F.avg_pool2d(decoded, 4), F.avg_pool2d(images, 4))
    return F.l1_loss(decoded, images) + edges + coarse, posterior.kl().float().mean() / images[0].numel()


@torch.no_grad()
def whiten_(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Fold the latents' mean and covariance into the 1x1 convolutions, so that latents are white and pictures unchanged."""
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in images.split(256)]).double()
    flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    mean, cov = flat.mean(0), torch.cov(flat.T)
    eigenvalues, vectors = torch.linalg.eigh(cov)
    white = vectors @ torch.diag(eigenvalues.rsqrt()) @ vectors.T
    back = torch.linalg.inv(white)
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    weight = quant.weight[:channels, :, 0, 0].double()
    quant.weight[:channels, :, 0, 0] = (white @ weight).float()
    quant.bias[:channels] = (white @ (quant.bias[:channels].double() - mean)).float()
    # The posterior's spread is of no use after training: a fixed, very small one makes sampling equal to the mode.
    quant.weight[channels:].zero_()
    quant.bias[channels:].fill_(-30.0)
    weight = post.weight[:, :, 0, 0].double()
    post.bias += (weight @ mean).float()
    post.weight[:, :, 0, 0] = (weight @ back).float()


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/emoji_flux"), show_default=True)
@click.option("--steps", default=2200, show_default=True, help="Optimiser steps.")
@click.option("--batch", default=32, show_default=True)
@click.option("--lr", default=2e-3, show_default=True)
@click.option("--decoder-only", is_flag=True, help="Keep the encoder, and go on with the decoder of a finished VAE.")
def main(out: Path, steps: int, batch: int, lr: float, decoder_only: bool) -> None:
    """Train, whiten, save `vae/`."""
    torch.manual_seed(SEED)
    renderer = Renderer(out / "art.npz")
    name = "vae_decoder" if decoder_only else "vae"
    vae = AutoencoderKL.from_pretrained(out / "vae") if decoder_only else AutoencoderKL(**CONFIG)
    vae = vae.to(memory_format=torch.channels_last)
    trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()] if decoder_only else [*vae.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.08)
    checkpoint = Checkpoint(out / f"{name}.ckpt", model=vae, optimiser=optimiser, schedule=schedule)
    start, began = checkpoint.load(), time.monotonic()
    for step in range(start, steps):
        images = pictures(renderer, batch, np.random.default_rng((SEED, decoder_only, step)))
        images = images.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            reconstruction, kl = loss_terms(vae, images, decoder_only)
        loss = reconstruction if decoder_only else reconstruction + KL_WEIGHT * kl
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step + 1 == steps:
            seconds = (time.monotonic() - began) / (step + 1 - start)
            click.echo(f"{name} step {step} reconstruction {reconstruction:.4f} kl {kl:.2f} {seconds:.3f} s/step")
        if (step + 1) % 200 == 0 or step + 1 == steps:
            checkpoint.save(step + 1)
    if not decoder_only:
        whiten_(vae.float(), pictures(renderer, 2048, np.random.default_rng((SEED, 1))))
    vae.save_pretrained(out / "vae")


if __name__ == "__main__":
    main()
