"""The shipped masks: each alone, all combined, and random subsets of every size.

    python -m benchmarks.catalogue --report benchmarks/reports/catalogue

The judge alone looks. Pictures are paired with the base model's, and prompts and noises held out from training. With
`--against FOLDER` the masks of the same categories that lie there, made alone, go through the same subsets; the curves
over the number of categories then show the gain of learning masks together. Later runs without it still draw that
curve, from the report. An interrupted run resumes: what has been measured stands in the report with the digests of the
masks it was measured on. `--write` then puts each mask's figures into its file and writes a card beside it. With
`--with FILE` a mask from another folder is combined with them, and gets no figures or card:

    python -m benchmarks.catalogue --masks policies/masks/emoji-flux-things --report benchmarks/reports/things \
        --with policies/masks/emoji-flux/fluent-style.safetensors --subsets 3 --write
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.cards import write_cards
from safeflux.disk.atomic import write_atomically
from safeflux.evaluation.bench import Bench
from safeflux.evaluation.figures import Figures
from safeflux.evaluation.plots import Point, plot_tradeoff
from safeflux.evaluation.questions import Sizes
from safeflux.evaluation.report import library_versions, utc_now
from safeflux.masks.encoding import digest
from safeflux.masks.file import load_masks
from safeflux.masks.mask_set import MaskSet, compose
from safeflux.rates import Rate
from safeflux.reference.judge import Judge
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import vocabulary

ALONE, ALL = Sizes(kept=1040), Sizes(kept=1400)
"""Pictures for each mask alone, and for all together: over 1,000 of other things each, an erased style left out."""
SMALL = Sizes(found=24, details=0, neighbours=0, kept=100, others=0)
"""Pictures for each random subset."""
NOTHING = Rate(0, 0)
TOGETHER, APART = "together", "apart"
"""The names of families: of the masks in question, and of those to compare with."""
View = Callable[[Figures], dict[str, Any]]
"""Selects the figures that go into the report."""


@dataclass(frozen=True)
class Family:
    """Masks of several categories that were made in one way, by category in the order of the vocabulary."""

    name: str
    masks: Mapping[str, MaskSet]
    paths: Mapping[str, Path]

    @classmethod
    def read(cls, name: str, folder: Path, others: Sequence[Path] = ()) -> Family:
        """All mask files of a folder and those below it, and others."""
        paths = [*folder.rglob("*.safetensors"), *others]
        found = {meta.category: (masks, path) for path in paths for masks, meta in [load_masks(path)]}
        ordered = {target: found[target] for target in vocabulary().targets if target in found}
        masks, files = ({target: pair[k] for target, pair in ordered.items()} for k in (0, 1))
        return cls(name, masks, files)

    def joined(self, names: Sequence[str]) -> MaskSet:
        """The AND of some."""
        return compose(*(self.masks[name] for name in names))


class Results:
    """All measurements, each on disk as soon as it is made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, key: str, family: Family, chosen: Sequence[str], bench: Bench, view: View) -> None:
        """Measure these masks, pictures and seed, unless the key has their figures already."""
        masks = family.joined(chosen)
        what = {"masks": digest(masks), "pictures": vars(bench.sizes), "seed": bench.seed}
        if {name: self.found.get(key, {}).get(name) for name in what} != what:
            click.echo(key)
            self.found[key] = {**what, **view(bench.measure(masks, chosen))}
            write_atomically(self._path, (json.dumps(self.found, indent=1) + "\n").encode())


def key_of(family: str, names: Sequence[str]) -> str:
    """The key of the figures of some masks of a family."""
    return f"{family}: {' + '.join(names)}"


def subsets_of(names: Sequence[str], each: int, seed: int) -> list[tuple[str, ...]]:
    """Up to `each` different random subsets of every size from 2 to all but one."""
    rng, out = np.random.default_rng(seed), []
    for size in range(2, len(names)):
        every = list(combinations(names, size))
        out += [every[k] for k in sorted(rng.permutation(len(every))[:each])]
    return out


def brief(figures: Figures) -> dict[str, Any]:
    """The figures of a subset for the curve."""
    return {
        "found": {name: target.found.masked.to_json() for name, target in figures.targets.items()},
        "found_base": {name: target.found.base.to_json() for name, target in figures.targets.items()},
        "kept_base": figures.kept_right.base.to_json(),
        "kept": figures.kept_right.masked.to_json(),
        "share_masked": figures.shares.to_json(),
    }


def points(results: Results, family: str, subsets: Sequence[tuple[str, ...]]) -> list[Point]:
    """One point for each number of categories: found and kept over all subsets of that size."""
    rates: dict[int, tuple[list[Rate], list[Rate]]] = {}
    for subset in subsets:
        one = results.found[key_of(family, subset)]
        found, kept = rates.setdefault(len(subset), ([], []))
        found += [Rate(rate["hits"], rate["n"]) for rate in one["found"].values()]
        kept.append(Rate(one["kept"]["hits"], one["kept"]["n"]))
    return [Point(str(size), sum(found, NOTHING), sum(kept, NOTHING)) for size, (found, kept) in sorted(rates.items())]


def worst(results: Results, family: str, subsets: Sequence[tuple[str, ...]]) -> str:
    """The category that is found most often in any of the subsets."""
    measured = {subset: results.found[key_of(family, subset)]["found"] for subset in subsets}
    rate, name, subset = max((found[n]["rate"], n, s) for s, found in measured.items() for n in found)
    rates = measured[subset][name]
    return f"{name} {Rate(rates['hits'], rates['n'])} under {' + '.join(subset)}" if rate else "nothing is found"


@click.command(help=__doc__)
@click.option("--masks", type=click.Path(path_type=Path, exists=True), default=Path("policies/masks/emoji-flux"))
@click.option(
    "--against", type=click.Path(path_type=Path, exists=True), help="Masks of the same categories, made alone."
)
@click.option("--report", type=click.Path(path_type=Path), default=Path("benchmarks/reports/catalogue"))
@click.option("--subsets", default=20, show_default=True, help="Random subsets of each size.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--with",
    "others",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A mask file from elsewhere that is combined with them; repeatable.",
)
@click.option("--write", is_flag=True, help="Put the figures into the mask files, and write the cards.")
def main(
    masks: Path, against: Path | None, report: Path, subsets: int, seed: int, others: Sequence[Path], write: bool
) -> None:
    """Measure the missing ones, draw the curve, write."""
    report.mkdir(parents=True, exist_ok=True)
    pipe, judge = load_pipeline(), Judge()
    everything, one, small = (Bench(pipe, judge, sizes=sizes, seed=seed) for sizes in (ALL, ALONE, SMALL))
    results, shipped = Results(report / "catalogue.json"), Family.read(TOGETHER, masks, others)
    names = list(shipped.masks)
    for bench, chosen in ((everything, names), *((one, [name]) for name in names)):
        results.add(" + ".join(chosen), shipped, chosen, bench, Figures.to_json)
    drawn = [*((name,) for name in names), *subsets_of(names, subsets, seed), tuple(names)]
    for family in (shipped, *([Family.read(APART, against)] if against else [])):
        for subset in (subset for subset in drawn if set(subset) <= family.masks.keys()):
            results.add(key_of(family.name, subset), family, subset, small, brief)
    curves = {}
    for name in (TOGETHER, APART):
        if measured := [subset for subset in drawn if key_of(name, subset) in results.found]:
            curves[name] = points(results, name, measured)
            for point in curves[name]:
                click.echo(f"{name:9} {point.label}: found {point.found}, kept {point.kept}")
            click.echo(f"{name:9} worst: {worst(results, name, measured)}")
    plot_tradeoff(curves, report / "curve.png", title="masks combined, 1 to all of them; mean over random subsets")
    if write:
        head = {
            "seed": seed,
            "pictures": {"alone": vars(ALONE), "all": vars(ALL)},
            "date": utc_now(),
            "versions": library_versions(),
        }
        written = {name: path for name, path in shipped.paths.items() if path not in others}
        write_cards(written, results.found, results.found[" + ".join(names)], head)


if __name__ == "__main__":
    main()
