"""From the scores of detectors to figures: what each detector counts, and how well it sees. Draws nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

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


def tally(words: Words, seen: Seen, name: str, detector: Detector) -> Opinion:
    """Choose the detector's thresholds on the sets for that, and count all others by them.

    Args:
        words: What was asked for.
        seen: The scores of this detector, among others.
        name: What it goes by there.
        detector: As it was opened.

    Raises:
        ConfigError: It has no label for a concept that is to be erased.
    """
    return _Counter(words, seen, name, detector).opinion()


def fidelity_of(seen: Seen) -> Fidelity:
    """How near the neutral pictures are to the base model's, whoever looks."""
    groups = [name for name in KEPT[:2] if name in seen.sets]
    names = [ask.thing for name in groups for ask in seen.sets[name].asks]
    base, masked = ([image for name in groups for image in side[name].images] for side in (seen.base, seen.masked))
    return Fidelity.of(names, base, masked, seen.two_noises)


class _Counter:
    """Counts for one detector."""

    def __init__(self, words: Words, seen: Seen, name: str, detector: Detector) -> None:
        self._words, self._seen, self._name = words, seen, name
        self._labels = labels_of(detector, {name: pack.words for name, pack in words.packs.items()})
        self._things = labels_of_things(detector, words.things)
        self._of_others = _labels_if_known(detector, words)
        self._detector, self._calibration = self._calibrated(detector)

    def opinion(self) -> Opinion:
        targets = {name: self._of(name, pack) for name, pack in self._words.packs.items()}
        kept = {group: self._right(group) for group in KEPT[:2]}
        kept[KEPT[2]] = _sum([self._others(name) for name in self._words.others])
        figures = Figures(
            targets=targets,
            kept={group: pair for group, pair in kept.items() if pair is not None},
            style_right=None,
            background_right=None,
            fidelity=fidelity_of(self._seen),
            frechet=None,
            frechet_n=0,
            shares=self._seen.shares,
        )
        labels = {
            name: [self._labels[name, concept] for concept in pack.concepts] for name, pack in self._words.packs.items()
        }
        return Opinion(figures, {name: self._calibration.about(own) for name, own in labels.items()})

    def _calibrated(self, detector: Detector) -> tuple[Detector, Calibration]:
        by_label: dict[str, list[Scores]] = {}
        for name in self._words.packs:
            asks, scores = self._seen.sets[f"{name}/{CALIBRATION}"].asks, self._scores("base", f"{name}/{CALIBRATION}")
            for k, ask in enumerate(asks):
                by_label.setdefault(self._labels[name, ask.thing], []).append(scores[k : k + 1])
        neutral = self._scores("base", CALIBRATION)
        return calibrate_by_scores(detector, {name: np.concatenate(part) for name, part in by_label.items()}, neutral)

    def _of(self, name: str, pack: Pack) -> TargetFigures:
        is_style = pack.target == "style"
        labels = {concept: self._labels[name, concept] for concept in pack.concepts}
        asks = self._asks(f"{name}/by name")
        by_concept = {
            concept: self._found(f"{name}/by name", labels, np.array([ask.thing == concept for ask in asks]))
            for concept in dict.fromkeys(ask.thing for ask in asks)
        }
        found = self._found(f"{name}/by name", labels)
        assert found is not None
        return TargetFigures(
            kind=pack.target,
            found=found,
            found_held_out=self._found(f"{name}/held out", labels),
            found_beside=self._found(f"{name}/beside", labels),
            other_beside=self._seen_beside(f"{name}/beside"),
            neighbours_right=self._right(f"{name}/neighbours"),
            thing_right=self._right(f"{name}/by name", of_other=True) if is_style else None,
            by_concept={concept: pair for concept, pair in by_concept.items() if pair is not None},
        )

    def _found(self, name: str, labels: Mapping[str, str], where: Bools | None = None) -> Paired | None:
        """How often what is asked for is found."""
        asks = self._asks(name)
        if not asks:
            return None
        columns = np.array([self._detector.place_of(labels[ask.thing]) for ask in asks])
        chosen = np.ones(len(asks), dtype=bool) if where is None else where

        def hits(side: str) -> Bools:
            scores = self._scores(side, name)[np.arange(len(asks)), columns]
            return np.asarray(scores > self._detector.thresholds[columns])[chosen]

        return Paired.of(hits("base"), hits("masked"))

    def _right(self, name: str, *, of_other: bool = False) -> Paired | None:
        """How often the harmless thing that is asked for is the likeliest; None where the detector knows none."""
        return self._likeliest(name, [ask.other if of_other else ask.thing for ask in self._asks(name)], 1)

    def _seen_beside(self, name: str) -> Paired | None:
        """How often the harmless thing is among the two likeliest of a picture of two things."""
        return self._likeliest(name, [ask.other for ask in self._asks(name)], 2)

    def _likeliest(self, name: str, things: Sequence[str | None], first: int) -> Paired | None:
        known = [k for k, thing in enumerate(things) if thing in self._things]
        if not known:
            return None
        columns = np.array([self._place[self._things[things[k] or ""]] for k in known])

        def hits(side: str) -> Bools:
            scores = self._scores(side, name)[known][:, self._columns]
            return np.asarray((np.argsort(-scores, axis=1)[:, :first] == columns[:, None]).any(axis=1))

        return Paired.of(hits("base"), hits("masked"))

    def _others(self, name: str) -> Paired | None:
        """Of a category that is not erased, how often its concepts are the likeliest; None where some are not known."""
        labels, asks = self._of_others.get(name), self._asks(f"{name}/by name")
        if labels is None or not asks:
            return None
        columns = np.array([self._place[labels[ask.thing]] for ask in asks])

        def hits(side: str) -> Bools:
            scores = self._scores(side, f"{name}/by name")[:, self._columns]
            return np.asarray(scores.argmax(axis=1) == columns)

        return Paired.of(hits("base"), hits("masked"))

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


def _sum(pairs: Sequence[Paired | None]) -> Paired | None:
    known = [pair for pair in pairs if pair is not None]
    return sum(known[1:], known[0]) if known else None
