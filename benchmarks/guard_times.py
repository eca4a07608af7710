"""The cost of a guard around the drawing: guard, verify and undo, on a model with as many tensors as FLUX.1.

    python -m benchmarks.guard_times --report benchmarks/reports/guard_times.json

The model has FLUX.1's 19 double and 38 single blocks, so that as many modules and tensors are looked at, and random
masks on every site. It is narrow: what is read and written grows with the width, what only compares objects does not.
Medians of many calls, one thread.
"""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path

import click
import torch
from diffusers import FluxTransformer2DModel

from benchmarks.timing import milliseconds, timed, write_report
from safeflux.families.sites import find_sites
from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.meta import MaskMeta
from safeflux.model.guard import guard
from safeflux.model.weights import fingerprint
from safeflux.policy.load import Category, Policy

SHARE_OFF = 0.01


def build(heads: int) -> FluxTransformer2DModel:
    """FLUX.1-dev's blocks at another width, 128 a head."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        num_layers=19, num_single_layers=38, num_attention_heads=heads, guidance_embeds=True, joint_attention_dim=64
    ).eval()


def random_masks(transformer: FluxTransformer2DModel) -> MaskSet:
    """A mask of every site, each bit off with a small chance."""
    sites, draw = find_sites(transformer), torch.Generator().manual_seed(1)
    return MaskSet({name: torch.rand(site.shape, generator=draw) >= SHARE_OFF for name, site in sites.items()})


def save_policy(transformer: FluxTransformer2DModel, masks: MaskSet, folder: Path, name: str) -> Policy:
    """Save masks to a folder, and return a policy that enforces them."""
    meta = MaskMeta(
        category=name,
        concepts=(name,),
        base_model="random",
        family=next(iter(find_sites(transformer).values())).family,
        fingerprint=fingerprint(transformer),
        method="random",
        config_sha256="0" * 64,
        evaluation={},
        licence="Apache-2.0",
    )
    save_masks(folder / f"{name}.safetensors", masks, meta)
    return Policy(name=name, categories={name: Category(masks=(name,))})


@click.command(help=__doc__)
@click.option("--heads", default=1, show_default=True, help="Width of the model, in attention heads; FLUX.1 has 24.")
@click.option("--times", default=200, show_default=True, help="Calls of each verify.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(heads: int, times: int, report: Path | None) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    transformer = build(heads)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        transformer.save_pretrained(base)
        policy = save_policy(transformer, random_masks(transformer), Path(folder), "random")
        taken: dict[str, list[float]] = {name: [] for name in ("verify", "guard", "undo")}
        for _ in range(5):
            handle, guarded = timed(partial(guard, transformer, policy, store=folder))
            taken["guard"].append(guarded)
            taken["undo"].append(milliseconds(handle.undo))
        handle = guard(transformer, policy, store=folder)
        taken["verify(base=...)"] = [milliseconds(partial(handle.verify, base=base)) for _ in range(3)]
    taken["verify"] = [milliseconds(handle.verify) for _ in range(times)]
    taken["verify(deep=True)"] = [milliseconds(partial(handle.verify, deep=True)) for _ in range(max(3, times // 20))]
    found = {name: statistics.median(each) for name, each in taken.items()}
    for name, value in found.items():
        click.echo(f"{name:18} {value:10.3f} ms")
    size = {
        "heads": heads,
        "modules": sum(1 for _ in transformer.modules()),
        "parameters": sum(1 for _ in transformer.parameters()),
        "numbers": sum(p.numel() for p in transformer.parameters()),
        "bits_off": handle.plan.masks.count.masked,
    }
    click.echo(", ".join(f"{key} {value:,}" for key, value in size.items()))
    write_report(report, milliseconds=found, times=times, **size)


if __name__ == "__main__":
    main()
