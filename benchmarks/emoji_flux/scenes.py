"""Real renderings of scenes: icon art on a plain background, as the recipe's training and test pictures.

Icons come as SVG from four npm packages (see `art.py`), are rendered once at 128 px, resized, and laid on a
background colour. Everything is drawn from a `numpy` generator, so a seed fixes the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from safeflux.reference.vocabulary import Vocabulary

SIZE = 64
"""Pixels a side of every picture."""


@dataclass(frozen=True)
class Placement:
    """How much pictures of one scene differ: the icons' sizes (for one object and for two) and shifts, in pixels."""

    single_sizes: tuple[int, ...]
    pair_sizes: tuple[int, ...]
    across: tuple[int, ...]
    down: tuple[int, ...]


STEADY = Placement((54,), (30,), (0,), (-2, 0, 2))
"""For the flow, which learns each size and shift of an icon anew: LOOSE gave mere patches after 1,700 steps."""

LOOSE = Placement((48, 50, 52, 54, 56), (28, 29, 30, 31), (-3, -2, -1, 0, 1, 2, 3), (-3, -2, -1, 0, 1, 2, 3))
"""For the judge and the VAE, which must not depend on where things stand."""

NOTHING = -1
"""In a scene's concepts: this place is left bare ("nothing" in captions)."""

NOTHING_SHARE = 0.05
"""How often a place is left bare. The model so learns what a picture without the thing is: the anchor of an erasure."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows, as indices into the vocabulary: one or two concepts (left first), a style, a background."""

    concepts: tuple[int, ...]
    style: int
    background: int


class Renderer:
    """Draws scenes from the rendered icons (`art.npz`: `icons`, uint8 RGBA, (concepts, styles, 128, 128, 4))."""

    def __init__(self, art: Path, words: Vocabulary, placement: Placement = LOOSE) -> None:
        icons, self.words = np.load(art)["icons"], words
        self._placement = placement
        self._icons = {size: _resize(icons, size) for size in (*placement.single_sizes, *placement.pair_sizes)}
        self._colours = np.array([rgb for _, rgb in words.backgrounds], dtype=np.float32)

    def draw(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """One picture, uint8 (64, 64, 3); place and size vary with `rng`."""
        canvas = np.broadcast_to(self._colours[scene.background], (SIZE, SIZE, 3)).copy()
        choices, single = self._placement, len(scene.concepts) == 1
        slot = SIZE if single else SIZE // 2
        for k, concept in enumerate(scene.concepts):
            if concept == NOTHING:
                continue
            size = int(rng.choice(choices.single_sizes if single else choices.pair_sizes))
            x = (slot - size) // 2 + int(rng.choice(choices.across))
            x = k * slot + min(max(x, 0), slot - size)
            y = (SIZE - size) // 2 + int(rng.choice(choices.down))
            icon = self._icons[size][concept, scene.style]
            place = canvas[y : y + size, x : x + size]
            place *= 1 - icon[..., 3:] / 255.0
            place += icon[..., :3]
        return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def random_scene(words: Vocabulary, rng: np.random.Generator, *, pair: bool) -> Scene:
    """A scene drawn evenly from the vocabulary; a pair holds two different concepts, and one place may be bare."""
    chosen = [int(c) for c in rng.choice(len(words.concepts), 2 if pair else 1, replace=False)]
    if rng.random() < NOTHING_SHARE:
        chosen[int(rng.integers(len(chosen)))] = NOTHING
    return Scene(tuple(chosen), int(rng.integers(len(words.styles))), int(rng.integers(len(words.backgrounds))))


def _resize(icons: np.ndarray, size: int) -> np.ndarray:
    """All icons at `size` pixels, uint8 with premultiplied alpha (Pillow itself resizes RGBA in premultiplied form)."""
    out = np.empty((*icons.shape[:2], size, size, 4), dtype=np.uint8)
    for index in np.ndindex(icons.shape[:2]):
        small = np.asarray(Image.fromarray(icons[index]).resize((size, size), Image.Resampling.LANCZOS)).astype(
            np.float32
        )
        small[..., :3] *= small[..., 3:] / 255
        out[index] = np.round(small)
    return out
