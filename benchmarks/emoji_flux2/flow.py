r"""Train the text encoder and the Flux2Transformer2DModel of emoji-flux-2 together, by flow matching of latents.

    python -m benchmarks.emoji_flux2.flow --out runs/emoji_flux2

The loss is that of emoji-flux (`benchmarks/emoji_flux/flow.py`), in one stage: a share of the times is nearly all noise
from the start. A run that was cut off goes on from its checkpoint, exactly, with the same options.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.emoji_flux.captions import describe
from benchmarks.emoji_flux.fit import fit
from benchmarks.emoji_flux.flow import noised
from benchmarks.emoji_flux.latents import Bank
from benchmarks.emoji_flux.network import compile_
from safeflux.reference.vocabulary import vocabulary

from .network import EmojiFlux2
from .options import out_option

SEED = 17
NOISY_SHARE = 0.25
"""Share of the times near 1, where the prompt alone decides on thing and style."""
DECAY_SHARE = 0.5
"""Share of the steps in which the learning rate falls."""


def flow_loss(model: EmojiFlux2, bank: Bank, batch: int, step: int) -> torch.Tensor:
    """The loss of one step's batch, which depends on the step alone."""
    rng, generator = np.random.default_rng((SEED, step)), torch.Generator().manual_seed(SEED * 1_000_003 + step)
    x0, scenes = bank.draw(batch, rng)
    x, s, target = noised(x0, generator, NOISY_SHARE)
    with sdpa_kernel(SDPBackend.MATH):  # the backward of the fused one is many times slower on a CPU
        tokens = model.encode([describe(scene, model.words, rng) for scene in scenes])
        return F.mse_loss(model.velocity(x, s, tokens).float(), target)


@click.command(help=__doc__)
@out_option
@click.option("--steps", default=8000, show_default=True)
@click.option("--batch", default=64, show_default=True)
@click.option("--lr", default=2e-3, show_default=True)
@click.option("--compiled/--eager", default=True, show_default=True, help="torch.compile: faster after the first step.")
def main(out: Path, steps: int, batch: int, lr: float, compiled: bool) -> None:
    """Train; save the weights as `flow.pt`, and steps, hours and loss as `flow.json`."""
    torch.manual_seed(SEED)
    model = EmojiFlux2(vocabulary())
    bank = Bank(out / "bank.pt", model.words)
    if compiled:
        compile_(model.transformer)
    hours = fit(
        "flow",
        out,
        model,
        lambda step: flow_loss(model, bank, batch, step),
        steps,
        lr,
        decay=0.0,
        decay_share=DECAY_SHARE,
        dtype=torch.float32,
    )
    torch.save(model.state_dict(), out / "flow.pt")
    last = json.loads((out / "flow.jsonl").read_text().splitlines()[-1])
    report = {"steps": steps, "batch": batch, "lr": lr, "hours": hours, "loss": last["loss"]}
    (out / "flow.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
