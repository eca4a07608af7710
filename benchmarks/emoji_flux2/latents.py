"""The VAE of emoji-flux-2, and the bank of the latents that its flow trains on.

    python -m benchmarks.emoji_flux2.latents --out runs/emoji_flux2

FLUX.2's autoencoder has the encoder and decoder of FLUX.1's, so it takes the trained weights of the embedded model's.
Of its own it has the statistics by which the pipeline normalises patches of 2 x 2 latents. Here these are the mean of
each channel and one variance for all, because the code gives strong components a greater variance on purpose
(`benchmarks/emoji_flux/latents.py`). That code is linear in patches of 8 x 8 pixels. It is recovered from the encoder,
so that the halves of pairs can be coded apart.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderKLFlux2

from benchmarks.emoji_flux.latents import Codec, bank_of, patches_of, pictures
from benchmarks.emoji_flux.scenes import Renderer
from safeflux.reference.model import EMOJI_FLUX
from safeflux.reference.vocabulary import vocabulary

from .options import out_option

SEED = 13
FIT_PICTURES, HELD_OUT_PICTURES = 512, 256


def code_of(vae: AutoencoderKL, images: torch.Tensor) -> Codec:
    """The linear code of patches that a VAE's encoder learned, by least squares from its latents of pictures."""
    patches, latents = patches_of(images).flatten(0, -2), vae.encode(images).latent_dist.mode()
    known = latents.permute(0, 2, 3, 1).flatten(0, -2)
    mean, middle = patches.mean(0), known.mean(0)
    forward = torch.linalg.lstsq((patches - mean).double(), (known - middle).double(), driver="gelsd").solution.float()
    backward = torch.linalg.pinv(forward)
    return Codec(mean - middle @ backward, forward, backward)


def flux2_vae(vae: AutoencoderKL, codes: torch.Tensor) -> AutoencoderKLFlux2:
    """The same weights as FLUX.2's class, with the statistics of packed codes (..., 128)."""
    made = AutoencoderKLFlux2.from_config(vae.config)
    mean = codes.flatten(0, -2).mean(0)
    variance = (codes - mean).square().mean() - made.config.batch_norm_eps  # the pipeline adds it again
    statistics = {"bn.running_mean": mean, "bn.running_var": variance.expand(len(mean)).clone()}
    made.load_state_dict({**made.state_dict(), **vae.state_dict(), **statistics})
    return made


def normalised(codes: torch.Tensor, vae: AutoencoderKLFlux2) -> torch.Tensor:
    """Packed codes (..., 128) as the pipeline's sampler has them."""
    return (codes - vae.bn.running_mean) / (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()


def quality(vae: AutoencoderKLFlux2, code: Codec, images: torch.Tensor) -> dict[str, float]:
    """Peak signal-to-noise ratio in dB of pictures that the VAE decodes from its own latents and from the code's."""
    latents = {"vae": vae.encode(images).latent_dist.mode(), "code and decoder": code.encode(images)}
    decoded = {name: vae.decode(each).sample.clamp(-1, 1) for name, each in latents.items()}
    return {name: 10 * torch.log10(4 / F.mse_loss(picture, images)).item() for name, picture in decoded.items()}


@click.command(help=__doc__)
@out_option
@torch.no_grad()
def main(out: Path) -> None:
    """Code all things, save `vae/`, `vae.json` and `bank.pt`."""
    words, embedded, rng = vocabulary(), AutoencoderKL.from_pretrained(EMOJI_FLUX / "vae"), np.random.default_rng(SEED)
    renderer = Renderer(out / "art.npz", words)
    code = code_of(embedded, pictures(renderer, FIT_PICTURES, rng)[0])
    bank = bank_of(code, out / "art.npz", words)
    vae = flux2_vae(embedded, bank["wholes"].float())
    vae.save_pretrained(out / "vae")
    report = {"psnr_db": quality(vae, code, pictures(renderer, HELD_OUT_PICTURES, rng)[0])}
    (out / "vae.json").write_text(json.dumps(report, indent=1) + "\n")
    torch.save({name: normalised(codes.float(), vae).bfloat16() for name, codes in bank.items()}, out / "bank.pt")
    click.echo(json.dumps(report))


if __name__ == "__main__":
    main()
