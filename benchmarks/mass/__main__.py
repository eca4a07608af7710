"""Learn a mask for each of many concepts, and measure random subsets of them, combined as a policy does.

    python -m benchmarks.mass --out runs/mass --concepts 100 --model benchmarks/emoji_flux/grown/emoji-flux \
        --vocabulary benchmarks/emoji_flux/grown/vocabulary.yaml --judge benchmarks/emoji_flux/grown/judge.onnx

Concepts learn in groups, are repaired together, and learn again beside the masks of the others (`learning`). The
curve has all subsets of one concept and random ones of each other size, in MACE's terms (`measuring`), beside the
unguarded model and random masks of as many bits. Costs come first. Everything resumes: runs by their checkpoints,
figures by the report. Writes `mass.json`, `mass.md` and `curve.png`.
"""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.mass.costs import costs_of
from benchmarks.mass.learning import learn
from benchmarks.mass.measuring import Measuring, Report, num_pictures, pictures_of, read_masks, subsets_of
from benchmarks.mass.page import write_page
from benchmarks.mass.world import World
from safeflux.reference import NAME

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(help=__doc__)
@click.option("--model", default=NAME, show_default=True, help="A model of the kind of emoji-flux: its folder.")
@click.option("--vocabulary", "words", type=_FILE, help="Its vocabulary.  [default: that of the embedded model]")
@click.option("--judge", type=_FILE, help="Its judge.  [default: that of the embedded model]")
@click.option("--concepts", default=100, show_default=True, help="How many get a mask.")
@click.option("--group", default=10, show_default=True, help="How many of them learn together.")
@click.option("--sizes", default="1,5,10,25,50,100", show_default=True, help="Masks on at once, divided by commas.")
@click.option("--subsets", default=20, show_default=True, help="Random subsets of each size but one.")
@click.option(
    "--pictures",
    default=24,
    show_default=True,
    help="About so many for each question and subset; more where a size has few subsets.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/mass"), show_default=True)
def main(
    model: str,
    words: Path | None,
    judge: Path | None,
    concepts: int,
    group: int,
    sizes: str,
    subsets: int,
    pictures: int,
    out: Path,
) -> None:
    """Learn, measure, write."""
    world, report = World.of(model, words, judge, concepts), Report(out / "mass.json")
    folder = learn(world, out, group, click.echo)
    masks = read_masks(folder, world.names)
    report.add("costs", costs_of(world, masks, folder))
    chosen = subsets_of(world.names, [int(size) for size in sizes.split(",")], subsets)
    each = pictures_of(chosen, pictures, subsets)
    total = sum(num_pictures(len(some), len(masks), each[len(some)]) for some in chosen)
    click.echo(f"{len(chosen)} subsets, {total:,} pictures at most, and those of the controls")
    measuring = Measuring(world, masks, report, each, click.echo)
    first = {len(some): some for some in reversed(chosen)}
    for some in chosen:
        measuring.measure(some)
    for some in first.values():
        measuring.measure(some, is_random=True)
    write_page(report.found, out)


if __name__ == "__main__":
    main()
