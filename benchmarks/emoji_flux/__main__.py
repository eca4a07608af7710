"""The whole recipe: art, latents, judge, second detector, VAE, flow, export, evaluation.

Finished stages are skipped, cut-off ones go on.

    python -m benchmarks.emoji_flux --out runs/emoji_flux --to safeflux/reference

It takes hours on two cores, mostly for the flow. Each stage can be run by itself; see the modules' own help.
"""

from __future__ import annotations

from pathlib import Path

import click

from .options import heads_option, out_option, report_option, to_option, vocabulary_option
from .stages import run_left, run_stage

STAGES = (
    ("emoji_flux.art", "art.npz"),
    ("emoji_flux.latents", "bank.pt"),
    ("emoji_flux.judge", "judge.json"),
    ("emoji_flux.clip", "clip.json"),
    ("emoji_flux.vae decoder", "vae_decoder.json"),
    ("emoji_flux.vae encoder", "vae_encoder.json"),
    ("emoji_flux.flow --decay-share 0", "flow.pt"),
    (
        "emoji_flux.flow --name shared --start flow.pt --steps 2200 "
        "--decay-share 1 --single-share 0.6 --noisy-share 0.5 --consistency 10",
        "shared.pt",
    ),
)
"""Each stage's module with its arguments, and the file that it leaves when it is done."""


@click.command(help=__doc__)
@out_option
@vocabulary_option
@heads_option
@click.option("--vae", "vae_options", default="", help="Further options of both stages `vae`, e.g. `--width 96`.")
@click.option("--flow", "flow_options", default="", help="Further options of both stages `flow`, e.g. `--batch 128`.")
@to_option
@report_option
def main(
    out: Path, vocabulary_path: Path | None, heads: int, vae_options: str, flow_options: str, to: Path, report: Path
) -> None:
    """Run what is left."""
    words = ("--vocabulary", str(vocabulary_path)) if vocabulary_path else ()
    vae, flow, size = vae_options.split(), flow_options.split(), ("--heads", str(heads))
    made = ("--to", str(to), "--report", str(report))
    run_left(out, STAGES, {"emoji_flux.vae": vae, "emoji_flux.flow": [*flow, *size]}, *words)
    run_stage("emoji_flux.export", "--out", str(out), *words, *size, *made)
    run_stage("emoji_flux.evaluate", *words, *made)


if __name__ == "__main__":
    main()
