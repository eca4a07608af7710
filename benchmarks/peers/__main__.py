"""All methods on the same targets, prompts, noises and judge.

    python -m benchmarks.peers --attacks quick --report benchmarks/reports/peers

Each method's settings are chosen on validation (seed 1) by MACE's harmonic mean over all targets at once, from as many
trials for each method; masks come as they are shipped. Then it is measured (seed 0) on each target, on random subsets
and on all: efficacy by name, generality by held-out words, specificity on everything else, fidelity, seconds and memory
to make, bytes to store, time a picture. A method that makes each target by itself is combined for a subset; others are
made anew. With --attacks, all targets off are attacked by prompts, one new word, img2img, one gradient and a fine-tune.

The report is REPORT/peers.json with every figure, peers.md with a row for each method and number of targets, peers.html
with all columns, and peers.png with the same prompts and noises by each method. An interrupted run resumes: what has
been measured stands in the report.

A whole run takes an estimated 18 hours of one core: 9 of training, 6 of pictures, 13,000 for each method, 2 more for
those of SLD, whose steps are many calls of the model, and half an hour of quick attacks. With --only, methods may be
run on different days.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.peers.attacking import SIZES, Attacks
from benchmarks.peers.chart import write_pictures, write_table
from benchmarks.peers.measuring import BASE, Peers, Report, subsets_of
from benchmarks.peers.methods import METHODS
from benchmarks.peers.page import write_page
from safeflux.evaluation.bench import Bench
from safeflux.evaluation.questions import Sizes
from safeflux.reference.judge import Judge
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import vocabulary

VALIDATION = Sizes(found=24, details=24, neighbours=0, kept=128, others=8)
MEASURED = Sizes(found=48, details=48, neighbours=24, kept=400, others=24)


@click.command(help=__doc__)
@click.option("--only", multiple=True, type=click.Choice(list(METHODS)), help="A method. Repeatable.  [default: all]")
@click.option("--targets", default="1,3,7", show_default=True, help="Targets at once, divided by commas.")
@click.option("--subsets", default=3, show_default=True, help="Random subsets of each size between one and all.")
@click.option("--attacks", type=click.Choice(list(SIZES)), help="Attack all targets at once, so much.  [default: not]")
@click.option("--report", type=click.Path(path_type=Path), default=Path("runs/peers"), show_default=True)
def main(only: Sequence[str], targets: str, subsets: int, attacks: str | None, report: Path) -> None:
    """Choose, measure, write."""
    pipe, judge = load_pipeline(), Judge()
    names = [name for name, target in vocabulary().targets.items() if target.concepts]
    validation, bench = Bench(pipe, judge, sizes=VALIDATION, seed=1), Bench(pipe, judge, sizes=MEASURED, seed=0)
    peers = Peers(pipe, validation, bench, Report(report / "peers.json"), say=click.echo)
    attacker = Attacks(pipe, judge, names, SIZES[attacks]) if attacks else None
    write_pictures(peers, BASE, names, {}, report)
    if attacker:
        peers.attack(BASE, names, {}, attacker)
    for method in only or METHODS:
        settings = peers.choose(method, names)
        for chosen in subsets_of(names, [int(size) for size in targets.split(",")], subsets):
            peers.measure(method, chosen, settings)
        peers.time(method, names, settings)
        peers.remember(method, names, settings)
        if attacker:
            peers.attack(method, names, settings, attacker)
        write_table(peers.report.found, report / "peers.md")
        write_pictures(peers, method, names, settings, report)
        write_page(peers.report.found, report)
        peers.forget()


if __name__ == "__main__":
    main()
