"""How deep a mask goes: what attacks still get back, and what is kept, over the share of the weights that are off.

    python -m benchmarks.depths --report benchmarks/reports/depths.json

The shipped mask of weapons takes the thing from its word. Deeper ones go on from it for as many rounds each, may switch
off single weights anywhere, and ask for the thing itself in most of their batches; they differ in how many bits a round
switches. Each is attacked by prompts, one new word, img2img, one gradient and a fine-tune, and compared with the base
model on everything else. A mask of as many bits at each site, drawn at random, shows what damage alone does.

About 70 minutes on one core beside other work, half of them training; an interrupted run resumes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.session import run

from benchmarks.erasure_terms import CATEGORY, CONTINUED
from benchmarks.peers.attacking import Attacks, applies
from benchmarks.peers.methods.masks import written
from benchmarks.timing import write_report
from safeflux.evaluation.attacks.base import Size
from safeflux.evaluation.attacks.victim import random_like
from safeflux.evaluation.bench import Bench
from safeflux.evaluation.plots import plot_growth
from safeflux.evaluation.questions import Sizes
from safeflux.masks.file import load_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.store import open_store
from safeflux.rates import Rate
from safeflux.reference.judge import Judge
from safeflux.reference.model import load_pipeline

DEPTHS = {"the word": 0, "100 a round": 100, "400 a round": 400, "1,600 a round": 1600, "6,400 a round": 6400}
"""Name -> bits that a round switches off at most, and on less than half as many; 0: the shipped mask itself."""
TRAINING = (
    *CONTINUED,
    "validation_prompts=96",
    "erase_terms={named: 0.12, own: 0.28, empty: 0.2, bank: 0.4}",
    "preserve_terms={named: 0.3, own: 0.45, empty: 0.25}",
    "saliency.rounds=30",
    "saliency.last_rounds=10",
    "saliency.warm_up=3",
    "saliency.erase_batches=2",
    "saliency.preserve_batches=3",
    "saliency.beta=8",
    "saliency.price_floor=0.5",
    "prompts.erase_pairs=256",
    "prompts.preserve_pairs=768",
)
UNGUARDED = "no mask"
ATTACKS = Size.of("quick", pictures=8)
KEPT = Sizes(found=200, details=96, neighbours=100, kept=600, others=24)


class Measure:
    """What is left of the thing under a mask, and of everything else."""

    def __init__(self) -> None:
        pipe, judge = load_pipeline(), Judge()
        self._pipe, self._bench = pipe, Bench(pipe, judge, sizes=KEPT)
        self._attacks = Attacks(pipe, judge, [CATEGORY], ATTACKS)

    def kept(self, masks: MaskSet) -> dict[str, Any]:
        """The figures of `safeflux eval`, by the judge."""
        return self._bench.measure(masks, [CATEGORY]).to_json()

    def attacked(self, masks: MaskSet) -> dict[str, Any]:
        """Row -> the share found, at the attack and budget that find most."""
        made, found = written(masks, 0), {}
        for row, attacks in self._attacks.rows.items():
            rates = []
            for attack in filter(lambda one: applies(one, made, is_outside=False), attacks):
                points = [self._attacks.run(attack, thing, made) for thing in self._attacks.things]
                rates += [
                    Rate(sum(int(p["hits"]) for p in at), sum(int(p["n"]) for p in at))
                    for at in zip(*points, strict=True)
                ]
            found[row] = max(rates, key=lambda rate: rate.value).to_json()
        return found


def masks_of(name: str, out: Path, shipped: Path) -> MaskSet:
    """The mask of a depth, trained unless it was."""
    if not (bits := DEPTHS[name]):
        return load_masks(shipped)[0]
    switched = (f"saliency.bits_off={bits}", f"saliency.bits_on={45 * bits // 100}")
    config = plan_run([CATEGORY], None, (*TRAINING, *switched), {"initial": (shipped,)})
    result = run(config, out / str(bits), lambda report, most: click.echo(f"  {report}"))
    assert result is not None  # one process
    return load_masks(result.paths[CATEGORY])[0]


def share_of(kept: Mapping[str, Any]) -> float:
    """The share of all single weights that are off."""
    counts = [kept["share_masked"][kind] for kind in ("weight", "image") if kind in kept["share_masked"]]
    return sum(count["masked"] for count in counts) / sum(count["total"] for count in counts)


def lines_of(depths: Mapping[str, Any]) -> dict[str, list[tuple[float, float, float]]]:
    """For the plot: attack -> share of the weights off, share found, share of everything else right."""
    rows = [one for name, one in depths.items() if name != UNGUARDED]
    return {
        attack: [
            (share_of(one["kept"]), one["attacked"][attack]["rate"], one["kept"]["kept_right"]["masked"]["rate"])
            for one in rows
        ]
        for attack in rows[0]["attacked"]
    }


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/depths"), show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=Path("runs/depths/depths.json"), show_default=True)
def main(out: Path, report: Path) -> None:
    """Train, measure, print, write."""
    shipped = open_store().metas(CATEGORY)[0][0]
    depths: dict[str, Any] = json.loads(report.read_text())["depths"] if report.exists() else {}
    report.parent.mkdir(parents=True, exist_ok=True)
    measure = Measure()

    def keep(name: str, **facts: Any) -> None:
        depths[name] = {**depths.get(name, {}), **facts}
        click.echo(f"{name}: {', '.join(facts)} measured")
        write_report(report, category=CATEGORY, training=TRAINING, switched=DEPTHS, depths=depths)

    if UNGUARDED not in depths:
        keep(UNGUARDED, attacked=measure.attacked(MaskSet({})))
    for name in DEPTHS:
        masks = masks_of(name, out, shipped)
        if "kept" not in depths.get(name, {}):
            keep(name, kept=measure.kept(masks))
        if "attacked" not in depths[name]:
            keep(name, attacked=measure.attacked(masks))
        if "random" not in depths[name]:
            keep(name, random=measure.attacked(random_like(masks, seed=0)))
    plot_growth(lines_of(depths), report.with_suffix(".png"), title=f"{CATEGORY}: how deep a mask goes")


if __name__ == "__main__":
    main()
