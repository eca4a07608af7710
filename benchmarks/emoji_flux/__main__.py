"""The whole recipe: art, latents, judge, second detector, VAE, flow, export, evaluation.

Finished stages are skipped, cut-off ones go on.

    python -m benchmarks.emoji_flux --out runs/emoji_flux --to safeflux/reference

It takes hours on two cores, mostly for the flow. Each stage can be run by itself; see the modules' own help.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from .options import heads_option, out_option, report_option, to_option, vocabulary_option

STAGES = (
    ("art", "art.npz"),
    ("latents", "bank.pt"),
    ("judge", "judge.json"),
    ("clip", "clip.json"),
    ("vae decoder", "vae_decoder.json"),
    ("vae encoder", "vae_encoder.json"),
    ("flow --decay-share 0", "flow.pt"),
    (
        "flow --name shared --start flow.pt --steps 2200 "
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
    out.mkdir(parents=True, exist_ok=True)
    words = ("--vocabulary", str(vocabulary_path)) if vocabulary_path else ()
    further = {"vae": vae_options.split(), "flow": [*flow_options.split(), "--heads", str(heads)]}
    made = ("--to", str(to), "--report", str(report))
    for stage, result in STAGES:
        if (out / result).exists():
            click.echo(f"{stage}: done before")
            continue
        module, *options = stage.split()
        _run(module, *options, *further.get(module, ()), "--out", str(out), *words)
    _run("export", "--out", str(out), *words, "--heads", str(heads), *made)
    _run("evaluate", *words, *made)


def _run(module: str, *arguments: str) -> None:
    click.echo(f"{module} {' '.join(arguments)}")
    subprocess.run([sys.executable, "-m", f"benchmarks.emoji_flux.{module}", *arguments], check=True)


if __name__ == "__main__":
    main()
