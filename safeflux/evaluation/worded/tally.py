"""From the scores of detectors to figures: what each detector counts, and how well it sees. Draws nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from safeflux.cached import cached_property
from safeflux.detectors.base import Detector, Scores
from safeflux.detectors.calibration import Calibration, calibrate_by_scores
from safeflux.detectors.labels import labels_of, labels_of_things
from safeflux.evaluation.fidelity import Fidelity
from safeflux.evaluation.figures import Figures, TargetFigures
from safeflux.evaluation.metrics import Bools, Paired
from safeflux.evaluation.questions import KEPT
from safeflux.evaluation.worded.bench import Looked, Seen
from safeflux.evaluation.worded.questions import CALIBRATION, Asked, Words
from safeflux.packs.schema import Pack


@dataclass(frozen=True, eq=False)
class Opinion:
    """What one detector counts, and what it finds and misses in the base model's pictures of each erased category."""

    figures: Figures
    calibrations: Mapping[str, Calibration]


def tally(words: Words, seen: Seen, detectors: Mapping[str, Detector]) -> dict[str, Opinion]:
    """Choose each detector's thresholds on the sets for that, and count all others by them.

    Args:
        words: What was asked for.
        seen: The scores of these detectors.
        detectors: As they were opened, by the names that they go by there.

    Raises:
        ConfigError: One has no label for a concept that is to be erased.
    """
    fidelity = fidelity_of(seen, detectors)
    return {name: Counter(words, seen, name, one).opinion(fidelity) for name, one in detectors.items()}


def fidelity_of(seen: Seen, detectors: Mapping[str, Detector]) -> Fidelity:
    """How near the neutral pictures are to the base model's; the distances are by the detectors behind the first.

    What the first one sees is what masks were chosen by, more often than not.
    """
    groups = [name for name in KEPT[:2] if name in seen.sets]
    names = [ask.thing for name in groups for ask in seen.sets[name].asks]
    base, masked = ([image for name in groups for image in side[name].images] for side in (seen.base, seen.masked))
    others = {name: one.features for name, one in list(detectors.items())[1:]}
    return Fidelity.of(names, base, masked, seen.two_noises, others)


@dataclass(frozen=True, eq=False)
class Hits:
    """Whether something holds in pictures of a set.

    Attributes:
        rows: The places of the pictures in the set, B of them.
        base: In the base model's, bool (B,).
        masked: In the masked model's, bool (B,).
    """

    rows: Sequence[int]
    base: Bools
    masked: Bools

    def where(self, chosen: Bools) -> "Hits":
        """Those of some pictures, bool (B,)."""
        rows = [row for row, is_chosen in zip(self.rows, chosen, strict=True) if is_chosen]
        return Hits(rows, self.base[chosen], self.masked[chosen])


class Counter:
    """What one detector sees in each picture, by thresholds from the sets for calibration.

    Args:
        words: What was asked for.
        seen: The scores of this detector, among others.
        name: What it goes by there.
        detector: As it was opened.

    Raises:
        ConfigError: It has no label for a concept that is to be erased.
    """

    def __init__(self, words: Words, seen: Seen, name: str, detector: Detector) -> None:
        self._words, self._seen, self._name = words, seen, name
        self._labels = labels_of(detector, {name: pack.words for name, pack in words.packs.items()})
        self._things = labels_of_things(detector, words.things)
        self._of_others = _labels_if_known(detector, words)
        self._detector, self._calibration = self._calibrated(detector)

    def opinion(self, fidelity: Fidelity) -> Opinion:
        """All figures, with those that are the same whoever looks."""
        words = self._words
        kept = {group: _rate(self.right(group)) for group in KEPT[:2]}
        kept[KEPT[2]] = _sum([_rate(self._others(name)) for name in words.others])
        figures = Figures(
            targets={name: self._target(name, pack) for name, pack in words.packs.items()},
            kept={group: pair for group, pair in kept.items() if pair is not None},
            style_right=None,
            background_right=None,
            fidelity=fidelity,
            frechet=None,
            frechet_n=0,
            shares=self._seen.shares,
        )
        return Opinion(figures, self.calibrations)

    @property
    def calibrations(self) -> dict[str, Calibration]:
        """Category -> what is found and missed of it in the base model's pictures."""
        labels = {n: [self._labels[n, concept] for concept in pack.concepts] for n, pack in self._words.packs.items()}
        return {name: self._calibration.about(own) for name, own in labels.items()}

    def found(self, name: str) -> Hits | None:
        """Whether the concept that is asked for is found; None for a set that is not there."""
        category, asks = name.partition("/")[0], self._asks(name)
        labels = [self._labels[category, ask.thing] for ask in asks]
        return self._above(name, np.array([[self._detector.place_of(label)] for label in labels])) if asks else None

    def any_found(self, name: str) -> Hits | None:
        """Whether any concept that is erased is found; None for a set that is not there."""
        asks, columns = self._asks(name), [self._detector.place_of(label) for label in self._labels.values()]
        return self._above(name, np.array([columns] * len(asks))) if asks else None

    def right(self, name: str, *, of_other: bool = False) -> Hits | None:
        """Whether the harmless thing that is asked for is the likeliest; None where it knows none.

        Pictures of things that it does not know are left out.
        """
        return self._likeliest(name, [ask.other if of_other else ask.thing for ask in self._asks(name)], 1)

    def seen_beside(self, name: str) -> Hits | None:
        """Whether the harmless thing is among the two likeliest of a picture of two; None where it knows none."""
        return self._likeliest(name, [ask.other for ask in self._asks(name)], 2)

    def _calibrated(self, detector: Detector) -> tuple[Detector, Calibration]:
        by_label: dict[str, list[Scores]] = {}
        for name in self._words.packs:
            asks, scores = self._seen.sets[f"{name}/{CALIBRATION}"].asks, self._scores("base", f"{name}/{CALIBRATION}")
            for k, ask in enumerate(asks):
                by_label.setdefault(self._labels[name, ask.thing], []).append(scores[k : k + 1])
        neutral = self._scores("base", CALIBRATION)
        return calibrate_by_scores(detector, {name: np.concatenate(part) for name, part in by_label.items()}, neutral)

    def _target(self, name: str, pack: Pack) -> TargetFigures:
        by_name, beside = f"{name}/by name", f"{name}/beside"
        hits, asked = self.found(by_name), np.array([ask.thing for ask in self._asks(by_name)])
        assert hits is not None
        return TargetFigures(
            kind=pack.target,
            found=Paired.of(hits.base, hits.masked),
            found_held_out=_rate(self.found(f"{name}/held out")),
            found_beside=_rate(self.found(beside)),
            other_beside=_rate(self.seen_beside(beside)),
            neighbours_right=_rate(self.right(f"{name}/neighbours")),
            thing_right=_rate(self.right(by_name, of_other=True)) if pack.target == "style" else None,
            by_concept={
                concept: pair
                for concept in pack.concepts
                if (pair := _rate(hits.where(asked == concept))) and pair.base.n
            },
        )

    def _above(self, name: str, columns: npt.NDArray[np.intp]) -> Hits:
        """Whether any of a picture's own columns (B, k) is above its threshold."""
        rows = np.arange(len(columns))[:, None]

        def hits(side: str) -> Bools:
            above = self._scores(side, name)[rows, columns] > self._detector.thresholds[columns]
            return np.asarray(above.any(axis=1))

        return Hits(range(len(columns)), hits("base"), hits("masked"))

    def _likeliest(self, name: str, things: Sequence[str | None], first: int) -> Hits | None:
        labels = {k: self._things[thing] for k, thing in enumerate(things) if thing in self._things}
        return self._first(name, labels, first)

    def _others(self, name: str) -> Hits | None:
        """Of a category that is not erased, whether its concepts are the likeliest; None where some are not known."""
        labels = self._of_others.get(name)
        asks = self._asks(f"{name}/by name") if labels else ()
        return self._first(f"{name}/by name", {k: labels[ask.thing] for k, ask in enumerate(asks) if labels}, 1)

    def _first(self, name: str, labels: Mapping[int, str], first: int) -> Hits | None:
        """Of the pictures that have a label, whether it is among the likeliest; None without any."""
        if not labels:
            return None
        rows, places = list(labels), np.array([self._place[label] for label in labels.values()])

        def hits(side: str) -> Bools:
            scores = self._scores(side, name)[rows][:, self._columns]
            return np.asarray((np.argsort(-scores, axis=1)[:, :first] == places[:, None]).any(axis=1))

        return Hits(rows, hits("base"), hits("masked"))

    @cached_property
    def _columns(self) -> list[int]:
        """The columns of everything that is a thing: styles are none."""
        of_styles = {n for n, pack in self._words.packs.items() if pack.target == "style"}
        erased = [label for (category, _), label in self._labels.items() if category not in of_styles]
        of_others = [label for labels in self._of_others.values() for label in labels.values()]
        labels = dict.fromkeys((*erased, *self._things.values(), *of_others))
        return [self._detector.place_of(label) for label in labels]

    @cached_property
    def _place(self) -> dict[str, int]:
        """Label -> its place among `_columns`."""
        return {self._detector.concepts[column]: k for k, column in enumerate(self._columns)}

    def _asks(self, name: str) -> tuple[Asked, ...]:
        return self._seen.sets[name].asks if name in self._seen.sets else ()

    def _scores(self, side: str, name: str) -> Scores:
        looked: Looked = getattr(self._seen, side)[name]
        return looked.scores[self._name]


def _labels_if_known(detector: Detector, words: Words) -> dict[str, dict[str, str]]:
    """Other category -> concept -> label; categories that the detector does not know wholly are left out."""
    found = {}
    for name, pack in words.others.items():
        names = {concept: labels_of_things(detector, (concept, *texts)) for concept, texts in pack.words.items()}
        if all(names.values()):
            found[name] = {concept: next(iter(labels.values())) for concept, labels in names.items()}
    return found


def _rate(hits: Hits | None) -> Paired | None:
    return None if hits is None else Paired.of(hits.base, hits.masked)


def _sum(pairs: Sequence[Paired | None]) -> Paired | None:
    known = [pair for pair in pairs if pair is not None]
    return sum(known[1:], known[0]) if known else None
