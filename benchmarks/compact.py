"""The gain of removing masked neurons over zeroing them: time, operations and bytes of one block of FLUX.1's shapes.

    python -m benchmarks.compact --report benchmarks/reports/compact.json

One double block in bf16, 1024 image and 512 text tokens, on one thread, with as many FFN neurons off as the published
reference masks have (47.6 % of the image stream's and 78.3 % of the text stream's, arXiv 2507.13386), drawn at random.
One forward of it masked and of it compacted, at each rounding of the widths, in turn and in an order that rotates;
medians, and the median of the ratios of neighbours in time. Operations are those that torch counts, and attention's.
`share` is the measured speed-up by the one that the operations allow. All that takes more time than its operations ask
for lowers it, as PyTorch's fused attention may on a CPU. So the whole block is measured with that attention, and with
the same attention as three plain calls for each head; and both feed-forwards alone, which shows what the widths
themselves do. `share_of_time` is what the whole block saves by what its feed-forwards can: their time in the masked
block by the share of their operations that is gone. All ways are first shown to answer alike.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.guard_scale import build, neurons
from benchmarks.timing import milliseconds, write_report
from safeflux.families.sites import find_sites
from safeflux.masks.cuts import ROUND_TO
from safeflux.masks.mask_set import MaskSet
from safeflux.model.apply import apply_masks_
from safeflux.model.compact import compact_

SIDE, TEXT_TOKENS = 32, 512
_MASKED = 0
"""In the place of a rounding."""
Step = Callable[[], torch.Tensor]


def inputs_of(model: Any) -> dict[str, Any]:
    """Random inputs of one double block of the model."""
    draw = torch.Generator().manual_seed(0)
    places = torch.cartesian_prod(torch.arange(1), torch.arange(SIDE), torch.arange(SIDE)).float()
    random = {
        "hidden_states": torch.randn(1, SIDE * SIDE, model.inner_dim, generator=draw),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, model.inner_dim, generator=draw),
        "temb": torch.randn(1, model.inner_dim, generator=draw),
    }
    rotary = model.pos_embed(torch.cat([torch.zeros(TEXT_TOKENS, 3), places]))
    return {name: value.to(model.dtype) for name, value in random.items()} | {"image_rotary_emb": rotary}


def whole_block(block: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The block's outputs for the text and the image tokens."""
    return torch.cat(block(**inputs), dim=1)


class AttentionByHeads(TorchFunctionMode):
    """Attention as a product, a softmax and a product for each head, wherever the fused one is called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take the place of `scaled_dot_product_attention`; let all else pass."""
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args or (kwargs[name] for name in ("query", "key", "value"))
        heads = zip(*(each.flatten(0, 1) for each in (query / query.shape[-1] ** 0.5, key, value)), strict=True)
        answers = [torch.softmax(q @ k.T, dim=-1) @ v for q, k, v in heads]
        return torch.stack(answers).view(value.shape)


def block_by_heads(block: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The outputs of the whole block with attention by heads."""
    with AttentionByHeads():
        return whole_block(block, inputs)


def feed_forwards(block: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The outputs of its two feed-forwards alone."""
    return torch.cat([block.ff_context(inputs["encoder_hidden_states"]), block.ff(inputs["hidden_states"])], dim=1)


PARTS = {"block": whole_block, "block, attention by heads": block_by_heads, "feed-forwards": feed_forwards}


def operations(step: Step) -> int:
    """Floating-point operations of one forward."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(
        display=False, custom_mapping={attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    ) as counter:
        step()
    return counter.get_total_flops()


def time_in_turn(steps: dict[int, Step], times: int) -> dict[int, list[float]]:
    """Milliseconds of each, after one that does not count."""
    ways, taken = list(steps), {way: list[float]() for way in steps}
    for step in steps.values():
        step()
    for run in range(times):
        for way in ways[run % len(ways) :] + ways[: run % len(ways)]:
            taken[way].append(milliseconds(steps[way]))
    return taken


def distance(step: Step, other: Step) -> float:
    """How far apart two answers are, in units of their size.

    Raises:
        SystemExit: Further than bf16 rounds.
    """
    one, two = step().float(), other().float()
    apart = float((one - two).square().mean().sqrt() / two.square().mean().sqrt())
    if not apart < 0.01:
        raise SystemExit(f"the masked and the compacted block answer {apart:.3g} apart")
    return apart


def compare(steps: dict[int, Step], times: int) -> dict[str, Any]:
    """Each rounding beside the masked one."""
    masked = steps[_MASKED]
    apart = {way: distance(step, masked) for way, step in steps.items()}
    taken, counted = time_in_turn(steps, times), {way: operations(step) for way, step in steps.items()}
    found = {}
    for way, each in taken.items():
        ratios = [mine / its for mine, its in zip(each, taken[_MASKED], strict=True)]
        ratio = statistics.median(ratios)
        found["masked" if way == _MASKED else f"rounded to {way}"] = {
            "milliseconds": statistics.median(each),
            "ratio": ratio,
            "ratios": ratios,
            "operations": counted[way],
            "share": counted[way] / counted[_MASKED] / ratio,
            "distance": apart[way],
        }
    return found


def measure(roundings: tuple[int, ...], times: int) -> dict[str, Any]:
    """Compact at each rounding, and compare."""
    model, draw = build(1, one_image_stream=False), torch.Generator().manual_seed(1)
    inputs = inputs_of(model)
    sites = [site for site in find_sites(model).values() if site.kind == "ff"]
    masks = MaskSet({site.name: torch.rand(site.shape, generator=draw) >= neurons(site) for site in sites})
    removed: dict[str, Any] = {"bytes_of_block": sum(p.nbytes for p in model.transformer_blocks[0].parameters())}
    blocks: dict[int, Any] = {}
    for round_to in roundings:
        smaller = copy.deepcopy(model)
        done = compact_(smaller, masks, round_to=round_to)
        removed[f"rounded to {round_to}"] = {"bytes": done.num_bytes_removed, "widths": done.widths}
        blocks[round_to] = smaller.transformer_blocks[0]
    apply_masks_(model, masks)
    blocks[_MASKED] = model.transformer_blocks[0]
    found = {
        name: compare({way: partial(part, block, inputs) for way, block in blocks.items()}, times)
        for name, part in PARTS.items()
    }
    apart = distance(*(partial(part, blocks[_MASKED], inputs) for part in (block_by_heads, whole_block)))
    return {"removed": removed, **found, "share_of_time": share_of_time(found), "distance_of_attentions": apart}


def share_of_time(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What the block saves, by what its feed-forwards would if their time were in step with their operations."""
    block, parts = found["block"], found["feed-forwards"]
    gone = {way: 1 - each["operations"] / parts["masked"]["operations"] for way, each in parts.items()}
    return {
        way: (block["masked"]["milliseconds"] - each["milliseconds"]) / (parts["masked"]["milliseconds"] * gone[way])
        for way, each in block.items()
        if gone[way]
    }


@click.command(help=__doc__)
@click.option("--times", default=15, show_default=True, help="Forwards of each.")
@click.option("--round-to", "roundings", multiple=True, default=(ROUND_TO, 1), show_default=True, help="Of widths.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(times: int, roundings: tuple[int, ...], report: Path | None) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    with torch.no_grad():
        found = measure(roundings, times)
    for part in PARTS:
        click.echo(part)
        for way, each in found[part].items():
            click.echo(
                f"  {way:14} {each['milliseconds']:8.1f} ms   {each['operations'] / 1e9:6.1f} GFLOP   "
                f"{each['ratio']:.3f} of masked   {each['share']:.3f} of the speed-up that removed operations allow"
            )
    for way, share in found["share_of_time"].items():
        click.echo(f"{way}: the block saves {share:.3f} of the time that its feed-forwards allow")
    for round_to in roundings:
        gone = found["removed"][f"rounded to {round_to}"]["bytes"]
        click.echo(f"rounded to {round_to}: {gone:,} of {found['removed']['bytes_of_block']:,} bytes removed")
    write_report(report, **found, times=times)


if __name__ == "__main__":
    main()
