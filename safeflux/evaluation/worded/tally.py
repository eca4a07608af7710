"""From what detectors see to figures: those of each, and of the strictest verdicts. Draws nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from safeflux.detectors.base import Detector
from safeflux.detectors.calibration import Calibration
from safeflux.evaluation.fidelity import Fidelity
from safeflux.evaluation.figures import Figures, TargetFigures
from safeflux.evaluation.metrics import Paired, frechet_distance
from safeflux.evaluation.questions import KEPT
from safeflux.evaluation.worded.bench import Seen
from safeflux.evaluation.worded.counting import Counter, Hits, Strictest
from safeflux.evaluation.worded.questions import Words
from safeflux.packs.schema import Pack


@dataclass(frozen=True, eq=False)
class Opinion:
    """What one detector counts, and what it finds and misses in the base model's pictures of each erased category."""

    figures: Figures
    calibrations: Mapping[str, Calibration]


def tally(words: Words, seen: Seen, detectors: Mapping[str, Detector]) -> tuple[dict[str, Opinion], Figures | None]:
    """Choose each detector's thresholds on the sets for that, and count all others by them.

    Args:
        words: What was asked for.
        seen: The scores of these detectors.
        detectors: As they were opened, by the names that they go by there.

    Returns:
        The opinion of each, and the figures by the strictest verdicts; None of a single detector.

    Raises:
        ConfigError: One has no label for a concept that is to be erased.
    """
    counters = {name: Counter(words, seen, name, one) for name, one in detectors.items()}
    fidelity = fidelity_of(seen, detectors)
    opinions = {name: Opinion(_figures(words, seen, one, fidelity), one.calibrations) for name, one in counters.items()}
    first = next(iter(detectors))
    opinions[first] = replace(opinions[first], figures=_with_frechet(opinions[first].figures, seen, detectors[first]))
    strictest = Strictest(list(counters.values()))
    return opinions, _figures(words, seen, strictest, fidelity) if len(counters) > 1 else None


def fidelity_of(seen: Seen, detectors: Mapping[str, Detector]) -> Fidelity:
    """How near the neutral pictures are to the base model's; the distances are by the detectors behind the first.

    What the first one sees is what masks were chosen by, more often than not.
    """
    names = [ask.thing for name in KEPT[:2] if name in seen.sets for ask in seen.sets[name].asks]
    base, masked = _neutral(seen)
    others = {name: one.features for name, one in list(detectors.items())[1:]}
    return Fidelity.of(names, base, masked, seen.two_noises, others)


def _neutral(seen: Seen) -> tuple[list[Image.Image], list[Image.Image]]:
    """The neutral pictures of the base model and of the masked one."""
    base, masked = (
        [image for name in KEPT[:2] if name in seen.sets for image in side[name].images]
        for side in (seen.base, seen.masked)
    )
    return base, masked


def _with_frechet(figures: Figures, seen: Seen, detector: Detector) -> Figures:
    """The figures with the distance of the neutral pictures in a detector's features, where it has any."""
    base, masked = map(detector.features, _neutral(seen))
    if base is None or masked is None:
        return figures
    distance = frechet_distance(base.astype(np.float64), masked.astype(np.float64))
    return replace(figures, frechet=distance, frechet_n=len(base), frechet_of=detector.name)


def _figures(words: Words, seen: Seen, counter: Counter | Strictest, fidelity: Fidelity) -> Figures:
    kept = {group: _rate(counter.right(group)) for group in KEPT[:2]}
    looks = {slot: _sum([_rate(counter.look_right(one, slot)) for one in KEPT[:2]]) for slot in words.looks}
    kept[KEPT[2]] = _sum([_rate(counter.others(name)) for name in words.others])
    return Figures(
        targets={name: _target(name, pack, seen, counter) for name, pack in words.packs.items()},
        kept={group: pair for group, pair in kept.items() if pair is not None},
        looks_right={slot: pair for slot, pair in looks.items() if pair is not None},
        fidelity=fidelity,
        frechet=None,
        frechet_n=0,
        shares=seen.shares,
    )


def _target(name: str, pack: Pack, seen: Seen, counter: Counter | Strictest) -> TargetFigures:
    by_name, beside = f"{name}/by name", f"{name}/beside"
    hits, asked = counter.found(by_name), np.array([ask.thing for ask in seen.sets[by_name].asks])
    assert hits is not None
    return TargetFigures(
        kind=pack.target,
        found=Paired.of(hits.base, hits.masked),
        traces=_rate(counter.traces(by_name)),
        found_held_out=_rate(counter.found(f"{name}/held out")),
        found_beside=_rate(counter.found(beside)),
        other_beside=_rate(counter.seen_beside(beside)),
        neighbours_right=_rate(counter.right(f"{name}/neighbours")),
        thing_right=_rate(counter.right(by_name, of_other=True)) if pack.target == "style" else None,
        by_concept={
            concept: pair for concept in pack.concepts if (pair := _rate(hits.where(asked == concept))) and pair.base.n
        },
    )


def _rate(hits: Hits | None) -> Paired | None:
    return None if hits is None else Paired.of(hits.base, hits.masked)


def _sum(pairs: Sequence[Paired | None]) -> Paired | None:
    known = [pair for pair in pairs if pair is not None]
    return sum(known[1:], known[0]) if known else None
