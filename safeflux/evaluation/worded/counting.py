"""What detectors see in each picture, by thresholds from the sets for calibration; one by one, or the strictest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from safeflux.cached import cached_property
from safeflux.detectors.base import Detector, Scores
from safeflux.detectors.calibration import Calibration, calibrate_by_scores, trace_levels
from safeflux.detectors.labels import labels_of, labels_of_things
from safeflux.evaluation.metrics import Bools
from safeflux.evaluation.worded.bench import Looked, Seen
from safeflux.evaluation.worded.questions import CALIBRATION, Asked, Words


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
        self._looks_right: dict[tuple[str, str], Hits | None] = {}
        self._detector, self._calibration = self._calibrated(detector)

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

    def traces(self, name: str) -> Hits | None:
        """Whether a trace is seen of the concept that is asked for; see `trace_levels`."""
        category, asks = name.partition("/")[0], self._asks(name)
        columns = np.array([[self._detector.place_of(self._labels[category, ask.thing])] for ask in asks])
        return self._above(name, columns, self._trace_levels) if asks else None

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

    def others(self, name: str) -> Hits | None:
        """Of a category that is not erased, whether its concepts are the likeliest; None where some are not known."""
        labels = self._of_others.get(name)
        asks = self._asks(f"{name}/by name") if labels else ()
        return self._first(f"{name}/by name", {k: labels[ask.thing] for k, ask in enumerate(asks) if labels}, 1)

    def look_right(self, name: str, slot: str) -> Hits | None:
        """Whether pictures have the look that a slot of their prompts asks for; None where the detector cannot tell.

        The pictures are looked at once: the strictest verdicts ask again.
        """
        if (name, slot) not in self._looks_right:
            self._looks_right[name, slot] = self._look_right(name, slot)
        return self._looks_right[name, slot]

    def _look_right(self, name: str, slot: str) -> Hits | None:
        asks = self._asks(name)
        looks = (
            [self._detector.likeliest(one[name].images, self._words.looks[slot]) for one in self._sides] if asks else []
        )
        asked = np.array([ask.looks[slot] for ask in asks])
        hits = [np.asarray(found == asked) for found in looks if found is not None]
        return Hits(range(len(asks)), *hits) if len(hits) == len(self._sides) else None

    def _calibrated(self, detector: Detector) -> tuple[Detector, Calibration]:
        by_label: dict[str, list[Scores]] = {}
        for name in self._words.packs:
            asks, scores = self._seen.sets[f"{name}/{CALIBRATION}"].asks, self._scores("base", f"{name}/{CALIBRATION}")
            for k, ask in enumerate(asks):
                by_label.setdefault(self._labels[name, ask.thing], []).append(scores[k : k + 1])
        neutral = self._scores("base", CALIBRATION)
        return calibrate_by_scores(detector, {name: np.concatenate(part) for name, part in by_label.items()}, neutral)

    @property
    def _sides(self) -> tuple[Mapping[str, Looked], Mapping[str, Looked]]:
        return self._seen.base, self._seen.masked

    def _above(self, name: str, columns: npt.NDArray[np.intp], levels: Scores | None = None) -> Hits:
        """Whether any of a picture's own columns (B, k) is above its level, by default its threshold."""
        rows, least = np.arange(len(columns))[:, None], self._detector.thresholds if levels is None else levels

        def hits(side: str) -> Bools:
            above = self._scores(side, name)[rows, columns] > least[columns]
            return np.asarray(above.any(axis=1))

        return Hits(range(len(columns)), hits("base"), hits("masked"))

    def _likeliest(self, name: str, things: Sequence[str | None], first: int) -> Hits | None:
        labels = {k: self._things[thing] for k, thing in enumerate(things) if thing in self._things}
        return self._first(name, labels, first)

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
    def _trace_levels(self) -> Scores:
        return trace_levels(self._scores("base", CALIBRATION), self._detector.thresholds)

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


class Strictest:
    """Several detectors as one that is hard to please: of their verdicts on a picture the strictest counts.

    Something erased is seen where any of them sees it, and anything else is right where all of them say so, of the
    pictures whose thing they all know.

    Args:
        counters: The detectors; at least one.
    """

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters = counters

    def found(self, name: str) -> Hits | None:
        """See `Counter`."""
        return _join([one.found(name) for one in self._counters], np.logical_or)

    def traces(self, name: str) -> Hits | None:
        """See `Counter`."""
        return _join([one.traces(name) for one in self._counters], np.logical_or)

    def right(self, name: str, *, of_other: bool = False) -> Hits | None:
        """See `Counter`."""
        return _join([one.right(name, of_other=of_other) for one in self._counters], np.logical_and)

    def seen_beside(self, name: str) -> Hits | None:
        """See `Counter`."""
        return _join([one.seen_beside(name) for one in self._counters], np.logical_and)

    def others(self, name: str) -> Hits | None:
        """See `Counter`."""
        return _join([one.others(name) for one in self._counters], np.logical_and)

    def look_right(self, name: str, slot: str) -> Hits | None:
        """See `Counter`."""
        return _join([one.look_right(name, slot) for one in self._counters], np.logical_and)

    def any_found(self, name: str) -> Hits | None:
        """See `Counter`."""
        return _join([one.any_found(name) for one in self._counters], np.logical_or)


def _join(parts: Sequence[Hits | None], rule: np.ufunc) -> Hits | None:
    """The verdicts on the pictures that all know; None where there are none."""
    known = [part for part in parts if part is not None]
    rows = sorted(set[int].intersection(*(set(part.rows) for part in known))) if len(known) == len(parts) else []
    if not rows:
        return None
    chosen = [part.where(np.isin(part.rows, rows)) for part in known]
    return Hits(rows, *(rule.reduce([getattr(part, side) for part in chosen]) for side in ("base", "masked")))


def _labels_if_known(detector: Detector, words: Words) -> dict[str, dict[str, str]]:
    """Other category -> concept -> label; categories that the detector does not know wholly are left out."""
    found = {}
    for name, pack in words.others.items():
        names = {concept: labels_of_things(detector, (concept, *texts)) for concept, texts in pack.words.items()}
        if all(names.values()):
            found[name] = {concept: next(iter(labels.values())) for concept, labels in names.items()}
    return found
