"""How near the kept pictures stay to the base model's, from the same noises, in what a person sees. Runs no model.

A detector calls a faded bicycle right. So three things are measured beside its verdicts: structural similarity, the
contrast that is left inside the thing, and, for the scale, how alike two pictures of the base model are that were drawn
of one prompt from two noises.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from safeflux.evaluation.metrics import Floats, Paired, cosine_distances, similarities
from safeflux.masks.card import TRACES
from safeflux.masks.nearness import FIDELITY, WORST, Distance, Faded, Nearness, Spread
from safeflux.rates import Mean

Features = Callable[[Sequence[Image.Image]], npt.NDArray[np.floating[Any]] | None]
"""Pictures to features (B, D), or to None of a detector that has none."""
_APART = 0.1
"""A pixel belongs to the thing where it is so far from the picture's ground, in units of the full range."""
_LEAST_THING = 0.01
"""Share of the pixels that a thing covers at least; less is a bare picture."""
_SIDE, _GAP, _CAPTION = 128, 8, 20
_INK, _PAPER = "#1a1c20", "#ffffff"
_NOBODY: Mapping[str, Features] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Fidelity(Nearness):
    """The figures with pictures to look at.

    Attributes:
        pairs: Of each of the worst things, in their order, the base model's picture and the masked model's that keeps
            least.
    """

    pairs: tuple[tuple[Image.Image, Image.Image], ...] = ()

    @classmethod
    def of(
        cls,
        concepts: Sequence[str],
        base: Sequence[Image.Image],
        masked: Sequence[Image.Image],
        two_noises: tuple[Sequence[Image.Image], Sequence[Image.Image]] = ((), ()),
        features: Mapping[str, Features] = _NOBODY,
    ) -> "Fidelity":
        """Measure.

        Args:
            concepts: What each picture was asked to show.
            base: The base model's pictures; at least two.
            masked: The masked model's, from the same prompts and noises.
            two_noises: The base model's pictures of some prompts, and of the same prompts from other noises; not
                measured without.
            features: Detector -> what its scores come from, for the distances.
        """
        has_ssim, has_two = find_spec("skimage") is not None, len(two_noises[0]) > 1
        contrasts = contrasts_kept(base, masked)
        known, least = contrasts[~np.isnan(contrasts)], _worst(concepts, contrasts)

        return cls(
            ssim=Spread.of(similarities(base, masked)) if has_ssim else None,
            contrast=Spread.of(known) if len(known) > 1 else None,
            two_noises=Mean.of(similarities(*two_noises)) if has_ssim and has_two else None,
            worst=tuple(least),
            distances={
                name: Distance(apart, _apart(of, *two_noises) if has_two else None)
                for name, of in features.items()
                if (apart := _apart(of, base, masked))
            },
            pairs=tuple((base[place], masked[place]) for place in least.values()),
        )

    def picture(self) -> Image.Image | None:
        """The worst concepts, a column each: the base model's picture above the masked model's; None without any."""
        if not self.worst:
            return None
        width = _GAP + len(self.worst) * (_SIDE + _GAP)
        sheet = Image.new("RGB", (width, 2 * (_SIDE + _GAP) + _GAP + _CAPTION), _PAPER)
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
        for column, (one, pair) in enumerate(zip(self.worst, self.pairs, strict=True)):
            left = _GAP + column * (_SIDE + _GAP)
            for row, image in enumerate(pair):
                tile = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
                sheet.paste(tile, (left, _GAP + row * (_SIDE + _GAP)))
            pen.text((left + _SIDE // 2, 2 * (_SIDE + _GAP) + _GAP), str(one), _INK, font, anchor="ma")
        return sheet


def beside_base(
    things: Sequence[str],
    base: Sequence[Image.Image],
    masked: Sequence[Image.Image],
    again: Sequence[Image.Image],
    traces: Paired,
) -> dict[str, Any]:
    """The part of a mask file's evaluation that speaks of it.

    Args:
        things: What each picture shows, B of them; of fewer than two there are no means.
        base: The base model's pictures.
        masked: The masked model's, from the same prompts and noises.
        again: The base model's of the same prompts from other noises.
        traces: What is seen of what was erased.
    """
    rates = {"base": traces.base.to_json(), "masked": traces.masked.to_json()}
    near = {FIDELITY: Fidelity.of(things, base, masked, (base, again)).to_json()} if len(things) > 1 else {}
    return {TRACES: rates, **near}


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


def _apart(features: Features, first: Sequence[Image.Image], second: Sequence[Image.Image]) -> Mean | None:
    a, b = features(first), features(second)
    return None if a is None or b is None else Mean.of(cosine_distances(a, b))


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


def _worst(concepts: Sequence[str], contrasts: Floats) -> dict[Faded, int]:
    """The concepts that faded most, the worst first, and where the picture of each is that keeps least."""
    places: dict[str, list[int]] = {}
    for k, concept in enumerate(concepts):
        if not np.isnan(contrasts[k]):
            places.setdefault(concept, []).append(k)
    faded = {
        Faded(concept, float(contrasts[own].mean()), len(own)): min(own, key=lambda k: contrasts[k])
        for concept, own in places.items()
    }
    return dict(sorted(faded.items(), key=lambda item: item[0].contrast)[:WORST])
