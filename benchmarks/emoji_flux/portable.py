"""The weights of a run in bf16, small enough for the repository: with them another machine goes on.

Beside them goes what another machine would make otherwise, and the weights mean nothing without: the CLIP tokenizer
(ties between its merges are broken at random) and the latent code (its axes have no sign).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

RAW, AVERAGE = "raw.safetensors", "average.safetensors"


def save(run: Path, name: str, model: nn.Module, average: AveragedModel, step: int, hours: float) -> None:
    """Write `RUN/portable/` anew: a stage's raw and averaged weights, step, hours, report and log, and the rest."""
    target, staged = run / "portable", run / "portable.partial"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    for file, part in ((RAW, model), (AVERAGE, average.module)):
        weights = {key: p.detach().bfloat16().contiguous() for key, p in part.named_parameters()}
        save_file(weights, staged / file, {"step": str(step), "hours": f"{hours:.4f}"})
    shutil.copytree(run / "clip_tokenizer", staged / "clip_tokenizer")
    for beside in ("codec.pt", f"{name}.jsonl", f"{name}.json"):
        shutil.copy(run / beside, staged / beside)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(staged, target)


def load(folder: Path, model: nn.Module, average: AveragedModel) -> tuple[int, float]:
    """Load raw and averaged weights; the step to go on with, and the hours until then."""
    metadata = _load(folder / RAW, model)
    load_average(folder, average.module)
    average.n_averaged.fill_(1)
    return int(metadata["step"]), float(metadata["hours"])


def load_average(folder: Path, model: nn.Module) -> int:
    """Load the averaged weights; the step that they are of."""
    return int(_load(folder / AVERAGE, model)["step"])


@torch.no_grad()
def _load(path: Path, model: nn.Module) -> dict[str, str]:
    with safe_open(path, "pt") as weights:
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.get_tensor(name))
        return weights.metadata()
