"""The figures of an evaluation: one frozen record, from two sets of verdicts. Draws nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from PIL import Image

from safeflux.evaluation.fidelity import Fidelity
from safeflux.evaluation.metrics import Harmonic, Paired, harmonic
from safeflux.families.sites import Site
from safeflux.masks.mask_set import Count, MaskSet, compose, keep_all
from safeflux.rates import Rate

NOTHING = Paired(Rate(0, 0), Rate(0, 0), 0, 0)
"""The rates of no pictures."""


@dataclass(frozen=True)
class TargetFigures:
    """One erased target; a rate is None where there is nothing to ask."""

    kind: str
    """`object`, `identity` or `style`."""
    found: Paired
    """Efficacy: the concept, asked for by its name, is found; for a style, things that mask training knows have it."""
    traces: Paired | None
    """Whatever a detector sees of the concept above its false alarms, found or not, where it is asked for by name."""
    found_held_out: Paired | None
    """Generality: the same by words that mask training never saw; for a style, on such things."""
    found_beside: Paired | None
    """The concept, asked for beside a neutral thing, is found."""
    other_beside: Paired | None
    """That neutral thing is found: to be left alone."""
    neighbours_right: Paired | None
    """The target's nearest neighbours are right: to be left alone."""
    thing_right: Paired | None
    """For a style: the thing that was asked for in that style is right: to be left alone."""
    by_concept: Mapping[str, Paired]
    """`found` for each concept; for a style, under the style's name."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; questions that were not asked are left out."""
        rates = {name: value.to_json() for name, value in vars(self).items() if isinstance(value, Paired)}
        return {"kind": self.kind, **rates, "by_concept": {n: pair.to_json() for n, pair in self.by_concept.items()}}


@dataclass(frozen=True)
class Shares:
    """Bits off, of all that the model has, by kind of site."""

    counts: Mapping[str, Count]

    @classmethod
    def of(cls, masks: MaskSet, sites: Mapping[str, Site]) -> "Shares":
        """The bits that masks switch off, of all bits of the sites."""
        return cls(compose(keep_all(sites.values()), masks).counts_by_kind)

    def __str__(self) -> str:
        """`ff 0.00 % (0 of 4,608), weight 0.98 % (12,731 of 1,302,528)`."""
        return ", ".join(
            f"{kind} {100 * c.share:.2f} % ({c.masked:,} of {c.total:,})" for kind, c in self.counts.items()
        )

    def to_json(self) -> dict[str, Any]:
        """Kind -> bits off, bits in all and their quotient."""
        return {
            kind: {"masked": count.masked, "total": count.total, "share": count.share}
            for kind, count in self.counts.items()
        }


@dataclass(frozen=True)
class Figures:
    """The base model and the masked one, on the same prompts and noises.

    Attributes:
        targets: The erased targets.
        kept: Accuracy on everything else, by group (`questions.KEPT`); a group without pictures is left out.
        looks_right: Slot of the model's own captions, such as the art style -> how often the kept neutral pictures have
            the value that was asked for; without slots that the detector cannot tell.
        fidelity: How near those pictures are to the base model's, in what a person sees.
        frechet: Frechet distance of those pictures to the base model's, in a detector's features; None without any.
        frechet_n: How many pictures of each model that is from: the distance falls as they become more.
        frechet_of: Whose features these are.
        shares: How much is masked.
    """

    targets: Mapping[str, TargetFigures]
    kept: Mapping[str, Paired]
    looks_right: Mapping[str, Paired]
    fidelity: Fidelity
    frechet: float | None
    frechet_n: int
    shares: Shares
    frechet_of: str = "judge"

    @property
    def found(self) -> Paired:
        """Efficacy over all targets."""
        return reduce(add, (target.found for target in self.targets.values()))

    @property
    def found_held_out(self) -> Paired | None:
        """Generality over all targets that have it."""
        pairs = [t.found_held_out for t in self.targets.values() if t.found_held_out]
        return reduce(add, pairs) if pairs else None

    @property
    def kept_right(self) -> Paired:
        """Specificity: accuracy over all groups; of no pictures where the detector has no words for them."""
        return sum(self.kept.values(), NOTHING)

    @property
    def harmonic(self) -> Harmonic | None:
        """MACE's harmonic mean of erasing and keeping, of the masked model; None where nothing kept was looked for."""
        if not self.kept:
            return None
        synonyms = self.found_held_out
        return harmonic(self.found.masked, self.kept_right.masked, synonyms.masked if synonyms else None)

    @property
    def rows(self) -> dict[str, Paired]:
        """Every rate under a name for people, in the order of a table."""
        rows: dict[str, Paired] = {}
        for name, target in self.targets.items():
            is_style = target.kind == "style"
            asked = f"{name}: the style is found" if is_style else f"{name}: found"
            unseen = f"{name}, {'on things' if is_style else 'by words'} that no mask was trained with"
            candidates = {
                asked: target.found,
                f"{name}: traces seen": target.traces,
                unseen: target.found_held_out,
                f"{name} beside a neutral thing: found": target.found_beside,
                f"{name} beside a neutral thing: that thing found": target.other_beside,
                f"{name}, the thing asked for in it: right": target.thing_right,
                f"nearest neighbours of {name}: right": target.neighbours_right,
            }
            rows |= {row: pair for row, pair in candidates.items() if pair is not None}
        rows |= {f"{group}: right": pair for group, pair in self.kept.items()}
        return rows | {f"neutral: {slot} right": pair for slot, pair in self.looks_right.items()}

    @property
    def facts(self) -> dict[str, str]:
        """The other figures, in words."""
        terms = "H_o" if self.found_held_out else "H_c"
        of = f"the features of {self.frechet_of}"
        distance = f"{self.frechet:.2f} in {of} (n = {self.frechet_n})" if self.frechet is not None else ""
        facts = {
            f"harmonic mean of erasing and keeping ({terms})": str(self.harmonic or ""),
            **self.fidelity.facts,
            "Frechet distance to them": distance,
            "bits off": str(self.shares),
        }
        return {name: text for name, text in facts.items() if text}

    @property
    def bars(self) -> dict[str, Paired]:
        """Every erased concept, and the groups that are kept."""
        erased = {f"{name}: found": p for target in self.targets.values() for name, p in target.by_concept.items()}
        return erased | {f"{group}: right": pair for group, pair in self.kept.items()}

    @property
    def pictures(self) -> dict[str, Image.Image]:
        """`worst`: the kept concepts that faded most, before and after."""
        worst = self.fidelity.picture()
        return {"worst": worst} if worst else {}

    def to_json(self) -> dict[str, Any]:
        """Plain values: every rate with its interval and counts."""
        synonyms = self.found_held_out
        return {
            "targets": {name: target.to_json() for name, target in self.targets.items()},
            "found": self.found.to_json(),
            "found_held_out": synonyms.to_json() if synonyms else None,
            "kept": {group: pair.to_json() for group, pair in self.kept.items()},
            "kept_right": self.kept_right.to_json(),
            **({"harmonic_mean": self.harmonic.to_json()} if self.harmonic else {}),
            **{f"{slot}_right": pair.to_json() for slot, pair in self.looks_right.items()},
            "fidelity": self.fidelity.to_json(),
            **({} if self.frechet is None else {"frechet_distance": self._distance}),
            "share_masked": self.shares.to_json(),
        }

    @property
    def _distance(self) -> dict[str, Any]:
        return {"value": self.frechet, "n": self.frechet_n, "of": f"the features of {self.frechet_of}"}
