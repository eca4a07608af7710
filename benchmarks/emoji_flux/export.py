"""Put the trained parts together as a plain FluxPipeline folder in bf16, with both detectors beside it.

    python -m benchmarks.emoji_flux.export --out runs/emoji_flux --to safeflux/reference

Writes too what the stages reported of their training (steps, losses, hours): `training.json` of the report.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import click
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline

from safeflux.reference.vocabulary import Vocabulary, vocabulary

from . import portable
from .network import EmojiFlux
from .options import heads_option, out_option, report_option, to_option, vocabulary_option

REPORTS = ("judge", "clip", "vae_decoder", "vae_encoder", "flow", "shared")
"""The stages that train."""


def assemble(out: Path, words: Vocabulary, heads: int) -> FluxPipeline:
    """The pipeline in bf16, with the averaged weights of the last stage."""
    model = EmojiFlux(out, words, heads)
    portable.load_average(out / "portable", model)
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=AutoencoderKL.from_pretrained(out / "vae"),
        text_encoder=model.text_encoder,
        tokenizer=model.clip_tokenizer,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=model.t5_tokenizer,
        transformer=model.transformer,
    )
    return pipe.to(torch.bfloat16)


def load_as_float32(folder: Path) -> None:
    """Make the text encoders load in float32 like the rest.

    transformers takes the dtype that a config names, diffusers takes float32, and a pipeline of both would not run.
    """
    for name in ("text_encoder", "text_encoder_2"):
        path = folder / name / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")


@click.command(help=__doc__)
@out_option
@vocabulary_option
@heads_option
@to_option
@report_option
def main(out: Path, vocabulary_path: Path | None, heads: int, to: Path, report: Path) -> None:
    """Write `emoji-flux/`, `judge.onnx`, `emoji-clip/` and `training.json`."""
    staged, target, second = to / ".emoji-flux.partial", to / "emoji-flux", to / "emoji-clip"
    shutil.rmtree(staged, ignore_errors=True)
    assemble(out, vocabulary(vocabulary_path), heads).save_pretrained(staged)
    load_as_float32(staged)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(staged, target)
    shutil.copy(out / "judge.onnx", to / "judge.onnx")
    shutil.copytree(out / "emoji-clip", second, dirs_exist_ok=True)
    training = {name: json.loads((out / f"{name}.json").read_text()) for name in REPORTS}
    report.mkdir(parents=True, exist_ok=True)
    (report / "training.json").write_text(json.dumps(training, indent=1) + "\n")
    size = sum(f.stat().st_size for f in [*target.rglob("*"), *second.rglob("*"), to / "judge.onnx"] if f.is_file())
    click.echo(f"{target}: {size / 1e6:.1f} MB with both detectors")


if __name__ == "__main__":
    main()
