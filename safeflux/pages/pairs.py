"""Pairs of pictures and their rates, as `parts.html` shows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from safeflux.pages.pictures import data_uri
from safeflux.rates import Rate

SHOWN = 8
"""Pairs that a section shows at once."""
MOST = 100
"""Pairs of a section that are on the page at all; those beyond `SHOWN` are folded away."""

SideName = Literal["before", "after"]


@dataclass(frozen=True)
class RateView:
    """A rate in words and as places on a scale from 0 % to 100 %."""

    value: str
    interval: str
    n: int
    side: SideName
    low: str
    width: str
    middle: str


@dataclass(frozen=True)
class SideView:
    """One picture: its `src`, the words for it, the verdict and whether that is as wanted (`good`, `bad` or empty)."""

    name: SideName
    src: str
    size: tuple[int, int]
    alt: str
    verdict: str
    mark: str


@dataclass(frozen=True)
class PairView:
    """One prompt drawn twice from the same noise."""

    prompt: str
    seed: int
    sides: tuple[SideView, SideView]


@dataclass(frozen=True)
class SectionView:
    """Prompts of one kind: the rates, where somebody looked, and the pairs."""

    title: str
    note: str
    before: RateView | None
    after: RateView | None
    pairs: Sequence[PairView]

    @property
    def shown(self) -> Sequence[PairView]:
        """The pairs that are seen at once."""
        return self.pairs[:SHOWN]

    @property
    def folded(self) -> Sequence[PairView]:
        """The others."""
        return self.pairs[SHOWN:MOST]


def percent(share: float, digits: int = 1) -> str:
    """A share as text.

    Examples:
        >>> percent(0.975)
        '97.5 %'
    """
    return f"{100 * share:.{digits}f} %"


def rate_view(rate: Rate, side: SideName) -> RateView:
    """A rate for the table."""
    low, high = rate.interval
    return RateView(
        value=percent(rate.value),
        interval=f"{100 * low:.1f} to {percent(high)}",
        n=rate.n,
        side=side,
        low=f"{low:.2%}",
        width=f"{high - low:.2%}",
        middle=f"{rate.value:.2%}",
    )


def side_view(
    image: Image.Image, name: SideName, asked: str, verdict: str, *, is_hit: bool | None, is_wanted: bool
) -> SideView:
    """One picture of a pair.

    Args:
        image: The picture.
        name: Which of the two it is.
        asked: What it was asked for and what was looked for, for those who cannot see it.
        verdict: What was seen, in a word; empty where nobody looked.
        is_hit: Whether it was seen; None where nobody looked.
        is_wanted: Whether that is wanted of the second picture.
    """
    mark = "" if name == "before" or is_hit is None else "good" if is_hit is is_wanted else "bad"
    alt = f"{name}: asked for {asked}{f' {verdict}' if verdict else ''}"
    return SideView(name, data_uri(image), image.size, alt, verdict, mark)
