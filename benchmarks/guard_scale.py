"""The cost of a guard on tensors of FLUX.1's true shapes, against a plain fill of the same elements.

    python -m benchmarks.guard_scale --report benchmarks/reports/guard_scale.json

Two models in bf16, on one thread. `neurons`: a double and a single block, with as many FFN neurons off as the published
reference masks have (47.6 % of the image stream's and 78.3 % of the text stream's, arXiv 2507.13386). `weights`: all 19
double blocks with 0.5 % of the two billion weights of their text path off; the image stream, which these masks do not
touch, is one block's under 19 names, so that it fits into memory. The plain fill is `tensor[index] = 0` for each tensor
with the indices at hand; a guard reads the mask file, resolves the policy, takes the fingerprint, saves what it
overwrites, fills, and reads back. A swap to other masks is compared with undoing the guard and guarding with the other
masks, which has everything on in between. Each run times both, one after the other; medians, and the median of the
ratios.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import FluxTransformer2DModel

from benchmarks.guard_times import save_policy
from benchmarks.timing import milliseconds, timed, write_report
from safeflux.families.sites import Site, find_sites
from safeflux.masks.mask_set import MaskSet
from safeflux.model.guard import guard
from safeflux.model.index_sets import Elements, Lines, Points
from safeflux.model.writes import Place, as_bits, places

IMAGE_OFF, TEXT_OFF, WEIGHTS_OFF = 0.476, 0.783, 0.005
_REPEATED = 1 << 20
"""Random numbers that the weights repeat: drawing two billion would take longer than all that is measured."""


def build(doubles: int, *, one_image_stream: bool) -> FluxTransformer2DModel:
    """FLUX.1-dev's width with some double blocks and one single block, bf16."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=doubles, num_single_layers=1, guidance_embeds=True).eval()
    first = model.transformer_blocks[0]
    for block in model.transformer_blocks[1:] if one_image_stream else ():
        block.ff, block.norm1, block.norm1_context = first.ff, first.norm1, first.norm1_context
        for name in ("to_q", "to_k", "to_v", "to_out"):
            setattr(block.attn, name, getattr(first.attn, name))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    numbers = 0.02 * torch.randn(_REPEATED, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data = numbers.repeat(-(-parameter.numel() // _REPEATED))[: parameter.numel()].view(parameter.shape)
    return model


def neurons(site: Site) -> float:
    """Share of a site's bits that is off, for neuron masks."""
    return {"ff": TEXT_OFF if "context" in site.name else IMAGE_OFF, "mlp": IMAGE_OFF}.get(site.kind, 0.0)


def weights(site: Site) -> float:
    """The same, for weight masks."""
    return WEIGHTS_OFF if site.kind == "weight" else 0.0


def index_of(elements: Elements, tensor: torch.Tensor) -> Any:
    """What to write in brackets for these elements."""
    if isinstance(elements, Points):
        return elements.places // tensor.shape[1], elements.places % tensor.shape[1]
    assert isinstance(elements, Lines)
    return (slice(None), elements.numbers) if elements.axis else elements.numbers


def fill_and_put_back(masked: list[Place]) -> float:
    """Milliseconds of a plain fill."""
    saved = [place.elements.read(as_bits(place.tensor)) for place in masked]
    plain = [(as_bits(place.tensor), index_of(place.elements, place.tensor)) for place in masked]

    def fill() -> None:
        for bits, index in plain:
            bits[index] = 0

    taken = milliseconds(fill)
    for place, bits in zip(masked, saved, strict=True):
        place.elements.put_(as_bits(place.tensor), bits)
    return taken


def measure(model: FluxTransformer2DModel, off: Callable[[Site], float], times: int) -> dict[str, Any]:
    """Time everything on one model."""
    draw = torch.Generator().manual_seed(1)
    sites = [site for site in find_sites(model).values() if off(site)]
    one, other = (
        MaskSet({site.name: torch.rand(site.shape, generator=draw) >= off(site) for site in sites}) for _ in range(2)
    )
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        policy = save_policy(model, one, Path(folder), "one")
        second = save_policy(model, other, Path(folder), "other")
        masked = list(places(model, one))
        for _ in range(times):
            fill = fill_and_put_back(masked)
            handle, guarded = timed(partial(guard, model, policy, store=folder))
            saved = handle.num_bytes_saved
            run = {
                "plain fill": fill,
                "guard": guarded,
                "guard / plain fill": guarded / fill,
                "verify(deep=True)": milliseconds(partial(handle.verify, deep=True)),
                "swap": milliseconds(partial(handle.swap, second, store=folder)),
                "undo": milliseconds(handle.undo),
            }
            other_handle, run["guard with the other masks"] = timed(partial(guard, model, second, store=folder))
            run["swap / (undo + guard)"] = run["swap"] / (run["undo"] + run["guard with the other masks"])
            other_handle.undo()
            for name, value in run.items():
                taken.setdefault(name, []).append(value)
    return {
        "medians": {name: statistics.median(values) for name, values in taken.items()},
        "all": taken,
        "bits_off": one.count.masked,
        "bits": one.count.total,
        "bytes_written": saved,
        "bytes_of_model": sum(p.numel() * p.element_size() for p in model.parameters()),
    }


@click.command(help=__doc__)
@click.option("--times", default=7, show_default=True, help="Runs of each.")
@click.option("--doubles", default=19, show_default=True, help="Double blocks of the model for weights.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(times: int, doubles: int, report: Path | None) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    found = {}
    for name, off, blocks in (("neurons", neurons, 1), ("weights", weights, doubles)):
        found[name] = measure(build(blocks, one_image_stream=True), off, times)
        click.echo(f"{name}: {found[name]['bits_off']:,} of {found[name]['bits']:,} bits off")
        for what, value in found[name]["medians"].items():
            click.echo(f"  {what:20} {value:10.2f}{'' if '/' in what else ' ms'}")
        click.echo(f"  kept for undo        {found[name]['bytes_written'] / 1e6:10.2f} MB")
    write_report(report, milliseconds=found, times=times)


if __name__ == "__main__":
    main()
