"""Render the icons that emoji-flux never learned, the control of every attack, to `safeflux/reference/unseen/`.

    python -m benchmarks.emoji_flux.unseen --out runs/emoji_flux

Needs what `benchmarks.emoji_flux.art` needs. None of the names is in a vocabulary of the recipe.
"""

from __future__ import annotations

from pathlib import Path

import click
from PIL import Image

from safeflux.reference.unseen import FOLDER, ICON_SIZE, UNSEEN
from safeflux.reference.vocabulary import vocabulary

from .art import PACKAGES, fetch, icon_svg, render
from .options import out_option


@click.command(help=__doc__)
@out_option
def main(out: Path) -> None:
    """Fetch, render, resize, save one PNG for each thing and style."""
    sets = {style: fetch(PACKAGES[style], out / "npm") for style in vocabulary().styles}
    FOLDER.mkdir(exist_ok=True)
    for name in (concept.name for concept in UNSEEN):
        for style, icons in sets.items():
            icon = Image.fromarray(render(icon_svg(icons, name)))
            small = icon.resize((ICON_SIZE, ICON_SIZE), Image.Resampling.LANCZOS)
            small.save(FOLDER / f"{name}-{style}.png", optimize=True)
    click.echo(f"{len(UNSEEN)} things x {len(sets)} styles -> {FOLDER}")


if __name__ == "__main__":
    main()
