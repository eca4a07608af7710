"""Train a network of one fixed loss: checkpoints, a log, and the dtype and the threads that are fastest here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import nn

from .checkpoint import Checkpoint, Every
from .cpu import FreeCores, faster_dtype
from .optimise import Log, Optimisers, learning_rate

CHECKPOINT_SECONDS = 240
DECAY_SHARE = 0.6


def fit(
    name: str,
    out: Path,
    model: nn.Module,
    loss: Callable[[int], torch.Tensor],
    steps: int,
    lr: float,
    decay: float,
    *,
    decay_share: float = DECAY_SHARE,
    convolutions: bool = False,
    max_norm: float = 1.0,
    dtype: torch.dtype | None = None,
    save_every: float = CHECKPOINT_SECONDS,
) -> float:
    """Train in place, or go on from the checkpoint, and return the hours that it took in all.

    The learning rate rises, is flat, and falls over the last steps.

    Args:
        name: Of the checkpoint and of the log in `out`.
        out: Folder of the run.
        model: What is trained.
        loss: The loss of a step's batch, which depends on the step alone.
        steps: Of the whole run.
        lr: Highest learning rate.
        decay: AdamW's weight decay.
        decay_share: Share of the steps in which the rate falls.
        convolutions: Whether Muon has the convolutions of its hidden layers too.
        max_norm: The norm that gradients are clipped to; infinite to leave them.
        dtype: Of matrix products; None for the one that is faster here.
        save_every: Seconds between checkpoints.
    """
    optimisers = Optimisers(model, lr, decay, convolutions=convolutions)
    checkpoint = Checkpoint(out / f"{name}.ckpt", model=model, optimisers=optimisers)
    start = checkpoint.load()
    if dtype is None:
        dtype, seconds = faster_dtype(lambda: loss(start))
        model.zero_grad(set_to_none=True)
        click.echo(f"{name}: seconds of forward and backward: {seconds}")
    click.echo(f"{name}: from step {start} in {dtype}")
    log, cores, to_save = Log(out / f"{name}.jsonl"), FreeCores(), Every(save_every)
    for step in range(start, steps):
        cores.use()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss(step)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimisers.step(lr * learning_rate(step, steps, decay_share), dtype)
        log.add(step, value.item(), last=step + 1 == steps)
        if to_save.is_due() or step + 1 == steps:
            checkpoint.save(step + 1)
    return checkpoint.hours
