"""How long an AND of many mask sets takes, at FLUX.1-dev's true sizes.

    python -m benchmarks.compose --report benchmarks/reports/compose.json

`neurons`: 100 mask sets, each of all 1,284,096 neurons that the published reference masks and single-block MLPs speak
of, a tenth of them off. `weights`: 20 mask sets, each with 0.5 % of the two billion weights of the text path off. The
bits are random, and composed as the policies' masks are (`safeflux.compose`), on one thread. Beside it: the same
AND, elementwise over NumPy's bool arrays for the neurons, as it would be without packed bits.
"""

from __future__ import annotations

import resource
import statistics
from functools import partial, reduce
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from benchmarks.timing import milliseconds, timed, write_report
from safeflux.families.sites import Site, find_sites
from safeflux.masks.mask_set import MaskSet, compose
from safeflux.masks.packed import SPARSE, PackedMask

NEURON_SETS, NEURONS_OFF = 100, 0.1
WEIGHT_SETS, WEIGHTS_OFF = 20, 0.005


def neuron_masks(sites: list[Site], draw: np.random.Generator) -> MaskSet:
    """A tenth of all neurons off."""
    return MaskSet({site.name: draw.random(site.shape, dtype=np.float32) >= NEURONS_OFF for site in sites})


def weight_masks(sites: list[Site], draw: np.random.Generator) -> MaskSet:
    """About 0.5 % of all weights off, drawn with repetition."""
    off = {site.name: draw.integers(0, site.num_bits, int(WEIGHTS_OFF * site.num_bits), np.uint32) for site in sites}
    return MaskSet({site.name: PackedMask(np.unique(off[site.name]).astype(SPARSE), site.shape) for site in sites})


def and_of_bools(sets: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The same composition with one byte for each bit."""
    return {name: reduce(np.logical_and, (masks[name] for masks in sets)) for name in sets[0]}


@click.command(help=__doc__)
@click.option("--times", default=21, show_default=True, help="Runs of the neurons; of the weights, a quarter.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(times: int, report: Path | None) -> None:
    """Draw, time, print, write."""
    with torch.device("meta"):
        sites = list(find_sites(FluxTransformer2DModel(guidance_embeds=True)).values())
    draw = np.random.default_rng(0)
    neurons = [site for site in sites if site.kind != "weight"]
    weights = [site for site in sites if site.kind == "weight"]
    sets = [neuron_masks(neurons, draw) for _ in range(NEURON_SETS)]
    bools = [dict(masks) for masks in sets]
    packed = [milliseconds(partial(compose, *sets)) for _ in range(times)]
    plain = [milliseconds(partial(and_of_bools, bools)) for _ in range(times)]
    figures = {
        "neurons": {
            "sets": NEURON_SETS,
            "bits": sets[0].count.total,
            "milliseconds": statistics.median(packed),
            "milliseconds_with_bools": statistics.median(plain),
        }
    }
    del sets, bools
    large = [weight_masks(weights, draw) for _ in range(WEIGHT_SETS)]
    taken = [timed(partial(compose, *large)) for _ in range(max(1, times // 4))]
    figures["weights"] = {
        "sets": WEIGHT_SETS,
        "bits": large[0].count.total,
        "off_each": large[0].count.masked,
        "off_in_all": taken[0][0].count.masked,
        "milliseconds": statistics.median(ms for _, ms in taken),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    for kind, values in figures.items():
        click.echo(f"{kind}: {values}")
    write_report(report, figures=figures, times=times)


if __name__ == "__main__":
    main()
