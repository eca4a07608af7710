"""The masks of random subsets of the concepts, measured by `safeflux.evaluation`'s questions and MACE's terms.

Acc_e  how often an erased concept is found, asked for by its name
Acc_g  the same by words that mask training never saw; for a style, on things that it never saw
Acc_s  how often other things are right: those that mask training never saw, and erasable ones whose mask is off
H      the harmonic mean of 1 - Acc_e, 1 - Acc_g and Acc_s (arXiv 2403.06135)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mass.world import World
from benchmarks.timing import ran_on
from safeflux.disk.atomic import write_atomically
from safeflux.evaluation.attacks.victim import random_like
from safeflux.evaluation.bench import Bench
from safeflux.evaluation.figures import NOTHING, Figures
from safeflux.evaluation.metrics import Harmonic, harmonic
from safeflux.evaluation.questions import KEPT, Sizes
from safeflux.masks.encoding import digest
from safeflux.masks.file import load_masks
from safeflux.masks.mask_set import MaskSet, compose
from safeflux.rates import Rate

SPECIFIC = (KEPT[0], KEPT[2])
"""The groups that make up Acc_s. The third, things to preserve that mask training knew, is reported beside it."""
SEED = 0
TERMS = ("found", "found_held_out", "kept_right")
"""Acc_e, Acc_g and Acc_s in a report."""


class Report:
    """All that is known, on disk as soon as it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"measured": {}, "random": {}}

    def add(self, part: str, value: Any) -> None:
        """Keep a value, with the versions and the machine."""
        self.found[part] = value
        self.found |= ran_on()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, (json.dumps(self.found, indent=1) + "\n").encode())


def read_masks(folder: Path, names: Sequence[str]) -> dict[str, MaskSet]:
    """The mask of each concept."""
    return {name: load_masks(folder / f"{name}.safetensors")[0] for name in names}


def subsets_of(names: Sequence[str], sizes: Sequence[int], each: int, seed: int = SEED) -> list[tuple[str, ...]]:
    """All subsets of one, and up to `each` different random ones of every other size, in the order of the names."""
    rng, out = np.random.default_rng(seed), []
    for size in (size for size in sizes if size <= len(names)):
        if size == 1:
            out += [(name,) for name in names]
            continue
        drawn: set[tuple[int, ...]] = set()
        while len(drawn) < min(each, comb(len(names), size)):
            drawn.add(tuple(sorted(rng.choice(len(names), size, replace=False).tolist())))
        out += [tuple(names[k] for k in chosen) for chosen in sorted(drawn)]
    return out


def pictures_of(chosen: Sequence[Sequence[str]], pictures: int, each: int) -> dict[int, int]:
    """Pictures a question for the subsets of each size: more where there are fewer than `each` subsets.

    The only subset of all concepts gets as many as the others of a size in all, for an interval as narrow as theirs.
    """
    subsets = Counter(map(len, chosen))
    return {size: pictures * max(1, each // count) for size, count in subsets.items()}


def sizes_for(size: int, count: int, pictures: int) -> Sizes:
    """About `pictures` of each question for a subset of `size` of the `count` concepts, however many it has."""
    return Sizes(
        found=max(2, pictures // size),
        details=max(1, pictures // size),
        neighbours=0,
        kept=max(8, pictures),
        others=-(-pictures // (count - size)) if size < count else 0,
    )


def num_pictures(size: int, count: int, pictures: int) -> int:
    """Pictures of the masked model for one subset, at most."""
    sizes = sizes_for(size, count, pictures)
    return size * (sizes.found + 2 * sizes.details) + sizes.kept + (count - size) * sizes.others


class Measuring:
    """Subsets of masks on one model.

    Args:
        world: The model.
        masks: Concept -> its mask.
        report: Keeps the figures.
        pictures: About so many for each question, by the number of masks on.
        say: Called with a line for each subset.
    """

    def __init__(
        self,
        world: World,
        masks: Mapping[str, MaskSet],
        report: Report,
        pictures: Mapping[int, int],
        say: Callable[[str], None],
    ) -> None:
        self._world, self._masks, self._report, self._pictures, self._say = world, masks, report, pictures, say
        self._bench = Bench(world.pipeline(), world.judge(), seed=SEED)

    def measure(self, chosen: Sequence[str], *, is_random: bool = False) -> None:
        """Measure a subset, unless the report has it with these masks; or as many bits at random, as a control."""
        masks = compose(*(self._masks[name] for name in chosen))
        if is_random:
            masks = random_like(masks, SEED)
        part, key = "random" if is_random else "measured", " + ".join(chosen)
        pictures = self._pictures[len(chosen)]
        what = {"masks": digest(masks), "pictures": pictures}
        kept = self._report.found[part]
        if key in kept and what == {name: kept[key][name] for name in what}:
            return
        self._bench.sizes = sizes_for(len(chosen), len(self._masks), pictures)
        figures = self._bench.measure(masks, [self._world.words.targets[name] for name in chosen])
        row = {"concepts": list(chosen), **what, **brief(figures)}
        self._report.add(part, {**kept, key: row})
        self._say(f"{part}, {len(chosen)} concepts: H {row['harmonic']['value']:.3f} ({key[:60]})")


def brief(figures: Figures) -> dict[str, Any]:
    """The figures of a subset."""
    held_out, kept = figures.found_held_out, [figures.kept[group] for group in SPECIFIC if group in figures.kept]
    specific, beside = sum(kept, NOTHING), [t.found_beside for t in figures.targets.values() if t.found_beside]
    value = harmonic(figures.found.masked, specific.masked, held_out.masked if held_out else None)
    base = harmonic(figures.found.base, specific.base, held_out.base if held_out else None)
    return {
        "found": figures.found.to_json(),
        "found_held_out": held_out.to_json() if held_out else None,
        "found_beside": sum(beside, NOTHING).to_json(),
        "kept_right": specific.to_json(),
        "known_right": figures.kept[KEPT[1]].to_json() if KEPT[1] in figures.kept else None,
        "style_right": figures.looks_right["style"].to_json(),
        "harmonic": value.to_json(),
        "harmonic_base": base.to_json(),
        "by_concept": {name: target.found.masked.to_json() for name, target in figures.targets.items()},
        "fidelity": figures.fidelity.to_json(),
        "share_masked": figures.shares.to_json(),
    }


def by_size(rows: Mapping[str, Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    """The rows of each number of concepts, in order."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows.values():
        found.setdefault(len(row["concepts"]), []).append(row)
    return dict(sorted(found.items()))


def pooled(rows: Sequence[Mapping[str, Any]], term: str, model: str = "masked") -> Rate:
    """One rate over several subsets; of no pictures where none has it."""
    counts = [row[term][model] for row in rows if row[term]]
    return Rate(sum(each["hits"] for each in counts), sum(each["n"] for each in counts))


def pooled_harmonic(rows: Sequence[Mapping[str, Any]], model: str = "masked") -> Harmonic:
    """H of the pooled rates."""
    erased, held_out, kept = (pooled(rows, term, model) for term in TERMS)
    return harmonic(erased, kept, held_out if held_out.n else None)
