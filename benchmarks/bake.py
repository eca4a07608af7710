"""Time and memory of a guarded copy of FLUX.1-dev, compared with a plain copy of the same file.

    python -m benchmarks.bake --folder /a/disk/with/48/GB --report benchmarks/reports/bake.json

The source has FLUX.1-dev's tensors, names and size in the layout of Black Forest Labs: 23.8 GB of made-up numbers in
bf16. `neurons` are masks with as many neurons off as the published reference masks have (47.6 % of the image stream's
FFN, 78.3 % of the text stream's, 17.7 % of the text modulation; arXiv 2507.13386), and `weights` ones with 0.5 % of the
two billion weights of the text path off. Each is baked by `safeflux bake` in a process of its own, and beside it `cp`
and `sync` copy the same file, since baking ends only when all is on the disk. One after the other, in turn; medians,
and the median of the ratios of neighbours.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import click
import numpy as np

from benchmarks.fluxfile import flux1_shapes, write_flux
from benchmarks.timing import timed, write_report
from safeflux.checkpoints.checkpoint import Checkpoint
from safeflux.families.sites import Site
from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.meta import MaskMeta
from safeflux.masks.packed import SPARSE, PackedMask

IMAGE_OFF, TEXT_OFF, NORM_OFF, WEIGHTS_OFF = 0.476, 0.783, 0.177, 0.005
POLICY = "apiVersion: safeflux/v1\nkind: Policy\nname: {name}\ncategories: {{weapons: {{masks: [{name}]}}}}\n"

MEASURED = """
import atexit, sys
from safeflux.cli import main
atexit.register(lambda: print(open("/proc/self/status").read()))
main(sys.argv[1:])
"""
"""The command line, and the system's figure of its memory at its end. `wait4` counts the parent's memory too."""


def share_off(site: Site) -> float:
    """Share of the neurons of a site that the reference masks switch off."""
    return {"norm": NORM_OFF, "mlp": 0.0}.get(site.kind, TEXT_OFF if "context" in site.fqn else IMAGE_OFF)


def draw_masks(sites: list[Site], kind: str) -> MaskSet:
    """Random masks of one kind."""
    draw, masks = np.random.default_rng(0), {}
    for site in sites:
        if kind == "weights" and site.kind == "weight":
            off = np.unique(draw.integers(0, site.num_bits, int(WEIGHTS_OFF * site.num_bits), np.uint32))
            masks[site.name] = PackedMask(off.astype(SPARSE), site.shape)
        elif kind == "neurons" and site.kind != "weight" and share_off(site):
            masks[site.name] = PackedMask.of(draw.random(site.shape) >= share_off(site))
    return MaskSet(masks)


def prepare(folder: Path, doubles: int, singles: int) -> Path:
    """Write the source, and a store and a policy for each kind of mask; return the source."""
    source = folder / "flux1.safetensors"
    write_flux(source, flux1_shapes(doubles, singles))
    found = Checkpoint.open(source)
    (folder / "store").mkdir()
    for kind in ("neurons", "weights"):
        meta = MaskMeta("weapons", ("random",), "made up", "flux1", found.fingerprint, "random", "0" * 64, "Apache-2.0")
        save_masks(folder / "store" / f"{kind}.safetensors", draw_masks(list(found.sites.values()), kind), meta)
        (folder / f"{kind}.yaml").write_text(POLICY.format(name=kind))
    return source


def copy(source: Path, target: Path) -> float:
    """Copy by the system's own tools, to the disk; seconds."""
    command = ["sh", "-c", 'cp "$0" "$1" && sync "$1"', str(source), str(target)]
    return timed(lambda: subprocess.run(command, check=True))[1] / 1000


def bake(source: Path, target: Path, kind: str) -> tuple[float, float]:
    """Bake in a process of its own; seconds, and megabytes at its peak."""
    folder = source.parent
    command = [sys.executable, "-c", MEASURED, "bake", source, target, "--policy", folder / f"{kind}.yaml"]
    command += ["--store", folder / "store"]
    done, taken = timed(lambda: subprocess.run(command, check=True, capture_output=True, text=True))
    return taken / 1000, int(done.stdout.rpartition("VmHWM:")[2].split()[0]) / 1024


@click.command(help=__doc__)
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="A new folder, on the disk to measure.")
@click.option("--doubles", default=19, show_default=True, help="Double blocks; fewer for a smaller file.")
@click.option("--singles", default=38, show_default=True, help="Single blocks.")
@click.option("--times", default=3, show_default=True, help="Copies and bakes of each kind.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(folder: Path, doubles: int, singles: int, times: int, report: Path | None) -> None:
    """Make the source, copy and bake in turn, print, write; the folder is gone afterwards."""
    folder.mkdir(parents=True)
    try:
        source, target = prepare(folder, doubles, singles), folder / "made.safetensors"
        taken: dict[str, list[float]] = {"neurons": [], "weights": []}
        ratios: dict[str, list[float]] = {"neurons": [], "weights": []}
        peak, copies, size = dict.fromkeys(taken, 0.0), [], source.stat().st_size
        for _ in range(times):
            for kind in taken:
                copies.append(copy(source, target))
                target.unlink()
                seconds, megabytes = bake(source, target, kind)
                target.unlink()
                taken[kind].append(seconds)
                ratios[kind].append(seconds / copies[-1])
                peak[kind] = max(peak[kind], megabytes)
                click.echo(f"{kind}: copy {copies[-1]:.1f} s, bake {seconds:.1f} s, peak {megabytes:.0f} MB")
    finally:
        shutil.rmtree(folder)
    kinds = {
        kind: {
            "seconds": statistics.median(taken[kind]),
            "ratio_to_copy": statistics.median(ratios[kind]),
            "ratios": ratios[kind],
            "peak_megabytes": peak[kind],
        }
        for kind in taken
    }
    click.echo(f"{size / 1e9:.2f} GB, copied in {statistics.median(copies):.1f} s: {kinds}")
    write_report(report, bytes=size, copy_seconds=statistics.median(copies), kinds=kinds, times=times)


if __name__ == "__main__":
    main()
