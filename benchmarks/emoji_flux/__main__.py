"""The whole recipe: art, latents, judge, VAE, flow, export, evaluation.

Finished stages are skipped, cut-off ones go on.

    python -m benchmarks.emoji_flux --out runs/emoji_flux --to safeflux/reference

About three hours on two cores. Each stage can be run by itself; see the modules' own help.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

STAGES = (
    ("art", "art.npz"),
    ("latents", "bank.pt"),
    ("judge", "judge.json"),
    ("vae decoder", "vae_decoder.json"),
    ("vae encoder", "vae_encoder.json"),
    ("flow", "flow.pt"),
    (
        "flow --name polish --start flow.pt --steps 1500 --lr 1e-3 "
        "--decay-share 1 --single-share 0.75 --noisy-share 0.5",
        "polish.pt",
    ),
    (
        "flow --name shared --start polish.pt --steps 2000 --lr 1e-3 "
        "--decay-share 1 --single-share 0.75 --noisy-share 0.5 --consistency 10",
        "shared.pt",
    ),
)
"""Each stage's module with its arguments, and the file that it leaves when it is done."""


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/emoji_flux"), show_default=True)
@click.option("--to", type=click.Path(path_type=Path), default=Path("safeflux/reference"), show_default=True)
def main(out: Path, to: Path) -> None:
    """Run what is left."""
    out.mkdir(parents=True, exist_ok=True)
    for stage, result in STAGES:
        if (out / result).exists():
            click.echo(f"{stage}: done before")
            continue
        _run(*stage.split(), "--out", str(out))
    _run("export", "--out", str(out), "--to", str(to))
    _run("evaluate", "--to", str(to))


def _run(module: str, *arguments: str) -> None:
    click.echo(f"{module} {' '.join(arguments)}")
    subprocess.run([sys.executable, "-m", f"benchmarks.emoji_flux.{module}", *arguments], check=True)


if __name__ == "__main__":
    main()
