"""Look at a run's averaged weights before there is a VAE or a judge: a contact sheet through the linear code.

    python -m benchmarks.emoji_flux.preview --out runs/emoji_flux --weights runs/emoji_flux/portable --to preview.png

Prints too how often the real code that is nearest to a sampled one is of the asked concept, and of the asked style.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import click
import torch
from PIL import Image

from safeflux.reference.vocabulary import vocabulary

from . import portable
from .evaluate import contact_sheet, sheet_prompts
from .latents import Bank, Codec, unpack
from .network import EmojiFlux
from .options import heads_option, out_option, vocabulary_option

SEED = 60_000_000


def sample(model: EmojiFlux, prompts: list[str], steps: int) -> torch.Tensor:
    """Packed latents (B, 16, 128) by Euler steps at even times, as the pipeline takes them."""
    x = torch.randn(len(prompts), 16, 128, generator=torch.Generator().manual_seed(SEED))
    tokens, pooled = model.encode(prompts)
    times = torch.linspace(1, 0, steps + 1)
    for now, then in pairwise(times):
        x = x + (then - now) * model.velocity(x, now.expand(len(x)), tokens, pooled)
    return x


@click.command(help=__doc__)
@out_option
@vocabulary_option
@heads_option
@click.option("--weights", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--to", type=click.Path(path_type=Path), default=Path("preview.png"), show_default=True)
@click.option("--steps", default=8, show_default=True)
@torch.no_grad()
def main(out: Path, vocabulary_path: Path | None, heads: int, weights: Path, to: Path, steps: int) -> None:
    """Sample, count, draw."""
    words = vocabulary(vocabulary_path)
    model, styles = EmojiFlux(out, words, heads), len(words.styles)
    step = portable.load_average(weights, model)
    prompts = sheet_prompts(words)
    latents = torch.cat([sample(model, prompts[k : k + 128], steps) for k in range(0, len(prompts), 128)])
    backgrounds = [words.background_names.index(p.split(", ")[-1].split()[0]) for p in prompts]
    found = Bank(out / "bank.pt", words).nearest(latents, backgrounds)
    concepts = sum(concept == k // styles for k, (concept, _) in enumerate(found)) / len(found)
    right = sum(style == k % styles for k, (_, style) in enumerate(found)) / len(found)
    click.echo(f"step {step}: nearest concept right {concepts:.1%}, style {right:.1%} of {len(found)}")
    pixels = (Codec.load(out).decode(unpack(latents)).clamp(-1, 1) + 1) * 127.5
    images = [Image.fromarray(each) for each in pixels.permute(0, 2, 3, 1).round().byte().numpy()]
    contact_sheet(words, images).save(to, optimize=True)


if __name__ == "__main__":
    main()
