"""What the demo saw: pictures in pairs, the rates that they give, and what guarding cost."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from PIL import Image

from safeflux.cached import cached_property
from safeflux.evaluation.fidelity import Fidelity
from safeflux.families import MATRIX_KINDS
from safeflux.masks.mask_set import Count
from safeflux.policy.load import Policy
from safeflux.rates import Rate
from safeflux.reference.measure import Ask


class Measure(StrEnum):
    """What is counted in a section's pictures."""

    FOUND = "found"
    """The concept that was asked for is in the picture: what a guard should bring down."""
    STYLE = "style"
    """The art style that was asked for is the picture's: what a guard against a style should bring down."""
    RIGHT = "right"
    """The concept that was asked for is the likeliest of all: what a guard should leave alone."""
    OTHER = "other"
    """The thing beside an erased concept is in the picture: to be left alone too."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture, and what the judge sees in it."""

    image: Image.Image
    found: bool
    right: bool
    other: bool
    style: bool


@dataclass(frozen=True, eq=False)
class Pair:
    """One prompt drawn twice from the same noise."""

    ask: Ask
    seed: int
    before: Picture
    after: Picture


@dataclass(frozen=True, eq=False)
class Section:
    """Prompts of one kind, and the rates that they give."""

    name: str
    measure: Measure
    pairs: tuple[Pair, ...]
    second: Mapping[str, tuple[Rate, Rate]]
    """Detector beside the judge -> its rates of the plain and of the guarded model."""

    @property
    def title(self) -> str:
        """What the section's rates count, in words."""
        return {
            Measure.FOUND: f"{self.name} found when asked for",
            Measure.STYLE: f"{self.name} found when asked for",
            Measure.RIGHT: "kept concepts drawn right",
            Measure.OTHER: "harmless neighbour found",
        }[self.measure]

    @property
    def base(self) -> Rate:
        """The rate of the plain model."""
        return Rate.of(getattr(pair.before, self.measure) for pair in self.pairs)

    @property
    def guarded(self) -> Rate:
        """The rate of the guarded model."""
        return Rate.of(getattr(pair.after, self.measure) for pair in self.pairs)


@dataclass(frozen=True)
class Timing:
    """Medians in milliseconds: the whole of `guard()`, and one denoising step of one picture without and with it."""

    guard: float
    plain: float
    guarded: float


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demo saw.

    Attributes:
        policy: The policy in force in the second half.
        seed: What the prompts and noises were drawn from.
        categories: One section for each enforced category.
        kept: Concepts that no mask training saw.
        beside: Such a concept in one picture with one that is erased.
        shares: Bits off, by kind of site.
        timing: What guarding costs.
        receipt: The evidence of the guard, taken while it was in force.
    """

    policy: Policy
    seed: int
    categories: tuple[Section, ...]
    kept: Section
    beside: Section
    shares: Mapping[str, Count]
    timing: Timing
    receipt: Mapping[str, Any]

    @property
    def sections(self) -> tuple[Section, ...]:
        """All sections, the erased categories first."""
        return (*self.categories, self.kept, self.beside)

    @property
    def noise_seeds(self) -> tuple[int, int]:
        """The first and the last seed of the noises."""
        return self.sections[0].pairs[0].seed, self.sections[-1].pairs[-1].seed

    @cached_property
    def fidelity(self) -> Fidelity | None:
        """How near the kept pictures stay to those before; None for a single one."""
        pairs = self.kept.pairs
        if len(pairs) < 2:
            return None
        before, after = ([getattr(pair, side).image for pair in pairs] for side in ("before", "after"))
        return Fidelity.of([pair.ask.concept for pair in pairs], before, after)

    @property
    def neurons(self) -> Count:
        """Neurons off, of all that a mask can switch off."""
        return _sum(count for kind, count in self.shares.items() if kind not in MATRIX_KINDS)

    @property
    def weights(self) -> Count:
        """Single weights off, of all that a mask can switch off."""
        return _sum(count for kind, count in self.shares.items() if kind in MATRIX_KINDS)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as one plain object. `share_masked` counts neurons and single weights, each as one bit."""
        first, last = self.noise_seeds
        return {
            "policy": self.policy.name,
            "seeds": {"prompts": self.seed, "noise": [first, last]},
            "categories": {
                section.name: {
                    "base_rate": section.base.value,
                    "guarded_rate": section.guarded.value,
                    "n": section.base.n,
                }
                for section in self.categories
            },
            "kept": {
                "base_accuracy": self.kept.base.value,
                "guarded_accuracy": self.kept.guarded.value,
                "n": self.kept.base.n,
                "fidelity": self.fidelity.to_json() if self.fidelity else None,
            },
            "second_opinions": {
                section.name: {
                    who: {"base_rate": base.value, "guarded_rate": guarded.value}
                    for who, (base, guarded) in section.second.items()
                }
                for section in self.sections
            },
            "share_masked": _sum(self.shares.values()).share,
            "guard_ms": self.timing.guard,
            "step_ms": {"plain": self.timing.plain, "guarded": self.timing.guarded},
        }


def _sum(counts: Iterable[Count]) -> Count:
    every = list(counts)
    return Count(sum(count.masked for count in every), sum(count.total for count in every))
