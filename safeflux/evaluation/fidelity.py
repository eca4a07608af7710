"""How near the kept pictures stay to the base model's, from the same noises, in what a person sees. Runs no model.

A detector calls a faded bicycle right. So three things are measured beside its verdicts: structural similarity, the
contrast that is left inside the thing, and, for the scale, how alike two pictures of the base model are that were drawn
of one prompt from two noises.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from safeflux.evaluation.metrics import Floats, Mean, similarities

WORST = 10
"""How many concepts are listed by name: those with the least contrast."""
_APART = 0.1
"""A pixel belongs to the thing where it is so far from the picture's ground, in units of the full range."""
_LEAST_THING = 0.01
"""Share of the pixels that a thing covers at least; less is a bare picture."""
_SIDE, _GAP, _CAPTION = 128, 8, 20
_INK, _PAPER = "#1a1c20", "#ffffff"


@dataclass(frozen=True)
class Spread:
    """A mean with its interval, and how low the lowest twentieth begins."""

    mean: Mean
    percentile_5: float

    @classmethod
    def of(cls, values: Floats) -> "Spread":
        """Of at least two values (B,)."""
        return cls(Mean.of(values), float(np.percentile(values, 5)))

    def __str__(self) -> str:
        """`0.945 (0.940 to 0.950, n = 200), 5th percentile 0.730`."""
        return f"{self.mean}, 5th percentile {self.percentile_5:.3f}"

    def to_json(self) -> dict[str, Any]:
        """The mean's value, interval and count, and the percentile."""
        return {**self.mean.to_json(), "percentile_5": self.percentile_5}


@dataclass(frozen=True, eq=False)
class Faded:
    """One concept: the contrast that its pictures keep on average, and the pair that keeps least."""

    concept: str
    contrast: float
    n: int
    base: Image.Image
    masked: Image.Image


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Pictures of things that masks should leave alone, against the base model's from the same noises.

    Attributes:
        ssim: Structural similarity; None without scikit-image.
        contrast: Share of the contrast inside the thing that is left; None where no picture shows a thing.
        two_noises: Structural similarity of two pictures of the base model, of one prompt from two noises: what a
            picture that has nothing but the prompt in common comes to. None without scikit-image.
        worst: The concepts that kept least of their contrast, the worst first.
    """

    ssim: Spread | None
    contrast: Spread | None
    two_noises: Mean | None
    worst: tuple[Faded, ...]

    @classmethod
    def of(
        cls,
        concepts: Sequence[str],
        base: Sequence[Image.Image],
        masked: Sequence[Image.Image],
        two_noises: tuple[Sequence[Image.Image], Sequence[Image.Image]] = ((), ()),
    ) -> "Fidelity":
        """Measure.

        Args:
            concepts: What each picture was asked to show.
            base: The base model's pictures; at least two.
            masked: The masked model's, from the same prompts and noises.
            two_noises: The base model's pictures of some prompts, and of the same prompts from other noises; not
                measured without.
        """
        has_ssim = find_spec("skimage") is not None
        contrasts = contrasts_kept(base, masked)
        known = contrasts[~np.isnan(contrasts)]
        return cls(
            ssim=Spread.of(similarities(base, masked)) if has_ssim else None,
            contrast=Spread.of(known) if len(known) > 1 else None,
            two_noises=Mean.of(similarities(*two_noises)) if has_ssim and len(two_noises[0]) > 1 else None,
            worst=_worst(concepts, contrasts, base, masked),
        )

    @property
    def facts(self) -> dict[str, str]:
        """The figures in words."""
        return {
            "structural similarity to the base model's pictures": str(self.ssim or "needs scikit-image"),
            **({"the same of two noises of the base model": str(self.two_noises)} if self.two_noises else {}),
            "contrast left inside the thing": str(self.contrast or "no picture shows a thing"),
            "least of it": ", ".join(f"{one.concept} {100 * one.contrast:.0f} %" for one in self.worst),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the pictures."""
        parts = {"ssim": self.ssim, "contrast": self.contrast, "two_noises_ssim": self.two_noises}
        worst = [{"concept": one.concept, "contrast": one.contrast, "n": one.n} for one in self.worst]
        return {name: part.to_json() if part else None for name, part in parts.items()} | {"worst": worst}

    def picture(self) -> Image.Image | None:
        """The worst concepts, a column each: the base model's picture above the masked model's; None without any."""
        if not self.worst:
            return None
        width = _GAP + len(self.worst) * (_SIDE + _GAP)
        sheet = Image.new("RGB", (width, 2 * (_SIDE + _GAP) + _GAP + _CAPTION), _PAPER)
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
        for column, one in enumerate(self.worst):
            left = _GAP + column * (_SIDE + _GAP)
            for row, image in enumerate((one.base, one.masked)):
                tile = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
                sheet.paste(tile, (left, _GAP + row * (_SIDE + _GAP)))
            text = f"{one.concept} {100 * one.contrast:.0f} %"
            pen.text((left + _SIDE // 2, 2 * (_SIDE + _GAP) + _GAP), text, _INK, font, anchor="ma")
        return sheet


def contrasts_kept(base: Sequence[Image.Image], masked: Sequence[Image.Image]) -> Floats:
    """Share of the contrast inside the thing that each masked picture keeps, at most 1; float64 (B,).

    The ground is the median colour of a picture's border. The thing is where the base model's picture is far from its
    ground, and its contrast the root mean square distance from there to the picture's own ground. NaN for a picture
    whose base is bare.

    Examples:
        >>> base = Image.new("RGB", (8, 8), "white")
        >>> base.paste("black", (2, 2, 6, 6))
        >>> faded = Image.new("RGB", (8, 8), "white")
        >>> faded.paste((128, 128, 128), (2, 2, 6, 6))
        >>> contrasts_kept([base, base], [base, faded]).round(2).tolist()
        [1.0, 0.5]
    """
    return np.array([_contrast_kept(*map(_away, pair)) for pair in zip(base, masked, strict=True)])


def _away(image: Image.Image) -> Floats:
    """How far each pixel is from the picture's ground, 0 to 1; (H, W)."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    distance: Floats = np.sqrt(((pixels - np.median(border, axis=0)) ** 2).mean(axis=2))
    return distance


def _contrast_kept(base: Floats, masked: Floats) -> float:
    thing = base > _APART
    if thing.mean() < _LEAST_THING:
        return float("nan")
    before, after = (float(np.sqrt((away[thing] ** 2).mean())) for away in (base, masked))
    return min(1.0, after / before)


def _worst(
    concepts: Sequence[str], contrasts: Floats, base: Sequence[Image.Image], masked: Sequence[Image.Image]
) -> tuple[Faded, ...]:
    places: dict[str, list[int]] = {}
    for k, concept in enumerate(concepts):
        if not np.isnan(contrasts[k]):
            places.setdefault(concept, []).append(k)
    faded = []
    for concept, own in places.items():
        least = min(own, key=lambda k: contrasts[k])
        faded.append(Faded(concept, float(contrasts[own].mean()), len(own), base[least], masked[least]))
    return tuple(sorted(faded, key=lambda one: one.contrast)[:WORST])
