"""Fetch the icon art (four npm packages) and render it to one file of RGBA icons.

    python -m benchmarks.emoji_flux.art --out runs/emoji_flux

Needs `npm` (to download the packages, whose versions are pinned here) and the `recipe` extra (resvg_py). Licences:
see NOTICE.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import click
import numpy as np
import resvg_py
from PIL import Image

from safeflux.reference.vocabulary import vocabulary

from .options import out_option, vocabulary_option

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "fluent": "@iconify-json/fluent-emoji-flat@1.2.6",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
}
PIXELS = 128
NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def fetch(package: str, folder: Path) -> dict:
    """The icon set of one npm package, from `folder` if it was downloaded before."""
    folder.mkdir(parents=True, exist_ok=True)
    name, version = package.lstrip("@").replace("/", "-").rsplit("@", 1)
    archive = folder / f"{name}-{version}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/icons.json")
        assert member is not None
        return json.load(member)


def icon_svg(icons: dict, name: str) -> str:
    """The SVG of one icon; `NAME-face` stands in for a missing `NAME`, aliases are followed."""
    for candidate in (name, f"{name}-face"):
        while candidate in icons.get("aliases", {}):
            candidate = icons["aliases"][candidate]["parent"]
        if candidate in icons["icons"]:
            entry = icons["icons"][candidate]
            width = entry.get("width", icons.get("width", 16))
            height = entry.get("height", icons.get("height", 16))
            box = f"{entry.get('left', 0)} {entry.get('top', 0)} {width} {height}"
            # A square outer size: an icon that is not square is fitted into it, centred.
            head = f'<svg {NAMESPACES} viewBox="{box}" width="{PIXELS}" height="{PIXELS}">'
            return f"{head}{entry['body']}</svg>"
    raise KeyError(f"icon set {icons['prefix']!r} has neither {name!r} nor '{name}-face'")


def render(svg: str) -> np.ndarray:
    """The icon as uint8 RGBA (straight alpha), (128, 128, 4)."""
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


@click.command(help=__doc__)
@out_option
@vocabulary_option
def main(out: Path, vocabulary_path: Path | None) -> None:
    """Fetch, render, save `art.npz`."""
    words = vocabulary(vocabulary_path)
    sets = {style: fetch(PACKAGES[style], out / "npm") for style in words.styles}
    names = [concept.icon or concept.name for concept in words.concepts]
    icons = np.stack([np.stack([render(icon_svg(sets[style], c)) for style in words.styles]) for c in names])
    np.savez_compressed(out / "art.npz", icons=icons)
    click.echo(f"{icons.shape[0]} concepts x {icons.shape[1]} styles -> {out / 'art.npz'}")


if __name__ == "__main__":
    main()
