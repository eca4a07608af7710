r"""Train the text encoders and the FluxTransformer2DModel of emoji-flux together, by flow matching of latents.

    python -m benchmarks.emoji_flux.flow --out runs/emoji_flux --steps 12000 --decay-share 0
    python -m benchmarks.emoji_flux.flow --out runs/emoji_flux --name shared --start flow.pt --steps 2200 \
        --decay-share 1 --single-share 0.6 --noisy-share 0.5 --consistency 10

Rectified flow: x_s = (1 - s) x_0 + s e, the network predicts e - x_0 (Liu et al., arXiv 2209.03003; s is logit-normal
as in Esser et al., arXiv 2403.03206). The learning rate is flat, or falls linearly over the last share of the steps.
The second command lets it fall to nothing. It goes on where pictures are nearly all noise, where the prompt alone
decides on the style and the logit-normal times come by seldom, and has all things share their styles
(`consistency.py`). The shipped model was made in three: its rate fell over the last 40 % of the first command, and the
second one's share of noise and its consistency came one after the other (`report/training.json`).

Stopped by SIGTERM or lost, a run goes on from its checkpoint, exactly. Every half hour it leaves its weights in
`portable/` too (`portable.py`): with `--resume-from` another machine goes on from those, at the same step of the same
schedule, its optimisers new. While the rate is flat, `--steps` may be raised. Trains in bf16 or float32, whichever is
faster on the machine.

Tensor shapes: B batch, N 16 image tokens, C 128 channels a token, L text tokens.
"""

from __future__ import annotations

import json
import math
import signal
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from safeflux.reference.vocabulary import vocabulary

from . import portable
from .captions import describe
from .checkpoint import Checkpoint, Every
from .consistency import restyled, style_spread
from .cpu import FreeCores, faster_dtype
from .latents import Bank
from .network import EmojiFlux, compile_
from .optimise import Log, Optimisers, learning_rate
from .options import heads_option, out_option, vocabulary_option

SEED = 7
CHECKPOINT_SECONDS, PORTABLE_SECONDS = 240, 1800
"""Time between checkpoints, and between the weights that another machine can go on from."""
POOLED_DROP = 0.15
"""How often the pooled embedding is that of the null prompt, so that the token embeddings carry the concept too."""


def flow_loss(
    model: EmojiFlux, x0: torch.Tensor, prompts: list[str], generator: torch.Generator, noisy_share: float
) -> torch.Tensor:
    """The flow-matching loss of one batch at random times."""
    x, s, target = noised(x0, generator, noisy_share)
    dropped = torch.rand(len(prompts), generator=generator) < POOLED_DROP
    tokens, pooled = model.encode([*prompts, ""])
    pooled = torch.where(dropped[:, None], pooled[-1:], pooled[:-1])
    return F.mse_loss(model.velocity(x, s, tokens[:-1], pooled).float(), target)


def noised(
    x0: torch.Tensor, generator: torch.Generator, noisy_share: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (B, N, C) at random times, those times (B,), and the velocity; a share evenly between 0.75 and 1."""
    batch = len(x0)
    noise = torch.randn(x0.shape, generator=generator)
    s = torch.sigmoid(1.2 * torch.randn(batch, generator=generator) + 0.2)
    if noisy_share:
        s = torch.where(torch.arange(batch) < noisy_share * batch, 1 - torch.rand(batch, generator=generator) / 4, s)
    return (1 - s)[:, None, None] * x0 + s[:, None, None] * noise, s, noise - x0


@dataclass(frozen=True)
class Settings:
    """What a run is made with; goes into its report."""

    heads: int
    start: str | None
    steps: int
    batch: int
    lr: float
    decay_share: float
    single_share: float
    noisy_share: float
    consistency: float
    ema: float


class Run:
    """One training run in a folder: begins, or goes on from its checkpoint, else from weights of another machine.

    Args:
        model: What is trained.
        out: Folder of the run.
        name: Of its files.
        settings: What it is made with.
        resume_from: Folder that `portable.save` wrote, for a run that has no checkpoint here.
    """

    def __init__(self, model: EmojiFlux, out: Path, name: str, settings: Settings, resume_from: Path | None) -> None:
        self.model, self.out, self.name, self.settings = model, out, name, settings
        self.bank = Bank(out / "bank.pt", model.words, settings.single_share)
        ema = torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema)
        self.average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=ema)
        self.optimisers = Optimisers(model, settings.lr)
        parts = {"model": model, "average": self.average, "optimisers": self.optimisers}
        self.checkpoint = Checkpoint(out / f"{name}.ckpt", **parts)
        self.step, self.stop = self.checkpoint.load(), threading.Event()
        if resume_from and not self.step:
            self.step, hours = portable.load(resume_from, model, self.average)
            self.optimisers.begun = self.step
            self.checkpoint.begin_after(hours)

    def loss(self, step: int) -> torch.Tensor:
        """The loss of one step's batch, which depends on the step alone."""
        model, chosen = self.model, self.settings
        rng = np.random.default_rng((SEED, step))
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
        x0, scenes = self.bank.draw(chosen.batch, rng)
        prompts = [describe(scene, model.words, rng) for scene in scenes]
        with sdpa_kernel(SDPBackend.MATH):
            loss = flow_loss(model, x0, prompts, generator, chosen.noisy_share)
            if chosen.consistency:
                ids, other_ids = (
                    model.tokenize(each) for each in (prompts, restyled(prompts, model.words.styles, rng))
                )
                spread = style_spread(model.text_encoder_2, model.text_encoder, ids, other_ids)
                loss = loss + chosen.consistency * spread
            return loss

    def train(self) -> None:
        """Go on to the last step, or until `stop` is set. Save all, and the averaged weights at last."""
        chosen = self.settings
        dtype, seconds = faster_dtype(lambda: self.loss(self.step))
        self.model.zero_grad(set_to_none=True)
        click.echo(f"{self.name}: from step {self.step} in {dtype}; seconds of forward and backward: {seconds}")
        log, to_save, to_carry = (
            Log(self.out / f"{self.name}.jsonl"),
            Every(CHECKPOINT_SECONDS),
            Every(PORTABLE_SECONDS),
        )
        cores = FreeCores()
        while self.step < chosen.steps and not self.stop.is_set():
            cores.use()
            loss = self.train_step(dtype)
            log.add(self.step, loss, last=self.step + 1 == chosen.steps)
            self.step += 1
            if to_save.is_due():
                self.checkpoint.save(self.step)
            if to_carry.is_due():
                self.carry()
        self.checkpoint.save(self.step)
        self.carry()
        if self.step >= chosen.steps:
            torch.save(self.average.module.state_dict(), self.out / f"{self.name}.pt")

    def train_step(self, dtype: torch.dtype) -> float:
        """One step of the optimisers and of the average; the loss before it."""
        chosen = self.settings
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = self.loss(self.step)
        if not math.isfinite(loss.item()):
            kept = f"the last checkpoint is {self.checkpoint.path}"
            raise SystemExit(f"{self.name}: the loss is {loss.item()} at step {self.step}; {kept}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = learning_rate(self.step, chosen.steps, chosen.decay_share, self.optimisers.begun)
        self.optimisers.step(chosen.lr * rate, dtype)
        self.average.update_parameters(self.model)
        return loss.item()

    def carry(self) -> None:
        """Write the report so far, and the weights in a form that another machine can go on from."""
        lines = map(json.loads, (self.out / f"{self.name}.jsonl").read_text().splitlines())
        losses = {line["step"]: line["loss"] for line in lines}
        every = {step: loss for step, loss in losses.items() if step % 1000 == 0 or step + 1 == self.settings.steps}
        hours = self.checkpoint.hours
        report = {**asdict(self.settings), "steps_done": self.step, "hours": hours, "loss_at_step": every}
        (self.out / f"{self.name}.json").write_text(json.dumps(report, indent=1) + "\n")
        portable.save(self.out, self.name, self.model, self.average, self.step, hours)


@click.command(help=__doc__)
@out_option
@vocabulary_option
@heads_option
@click.option("--name", default="flow", show_default=True, help="Of the files: checkpoint, log, report, weights.")
@click.option("--start", default=None, help="File in OUT with the weights to start from.")
@click.option(
    "--resume-from",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=None,
    help="`portable` folder of a run, to go on with it where OUT has no checkpoint.",
)
@click.option("--steps", default=12000, show_default=True)
@click.option("--batch", default=96, show_default=True)
@click.option("--lr", default=2e-3, show_default=True)
@click.option("--decay-share", default=0.4, show_default=True, help="Share of the steps in which the rate falls.")
@click.option("--single-share", default=0.5, show_default=True, help="Share of one-object scenes.")
@click.option("--noisy-share", default=0.0, show_default=True, help="Share of times near 1.")
@click.option("--consistency", default=0.0, show_default=True, help="Weight of the loss that has things share styles.")
@click.option("--compiled/--eager", default=True, show_default=True, help="torch.compile: a third faster here.")
@click.option("--ema", default=0.998, show_default=True, help="Decay of the averaged weights, which are what is kept.")
def main(
    out: Path,
    vocabulary_path: Path | None,
    heads: int,
    name: str,
    start: str | None,
    resume_from: Path | None,
    compiled: bool,
    **settings: Any,
) -> None:
    """Train, save averaged weights as `NAME.pt` and the losses on the way as `NAME.json`; SIGTERM saves and ends."""
    torch.manual_seed(SEED)
    model = EmojiFlux(out, vocabulary(vocabulary_path), heads)
    if start:
        model.load_state_dict(torch.load(out / start, weights_only=True))
    if compiled:
        compile_(model.transformer)
    run = Run(model, out, name, Settings(heads, start, **settings), resume_from)
    signal.signal(signal.SIGTERM, lambda *_: run.stop.set())
    run.train()


if __name__ == "__main__":
    main()
