"""The cost of a guard where serving changes how a model is called: q, k and v fused, and each cache of diffusers.

    python -m benchmarks.served_latency --report benchmarks/reports/served_latency.json

A picture of four steps on the embedded model by a guarded copy, compared with one by a plain copy, in turn. The caches
are set as loose as they come, so that both copies skip the same work. Ratios are of neighbours in time; medians with
95 % intervals of the median, one thread.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import hooks

from benchmarks.step_latency import Step, forward, inputs_of, neuron_masks, time_in_turn
from benchmarks.timing import write_report
from safeflux.model.apply import apply_masks_
from safeflux.reference.model import load_pipeline

STEPS = 4


def ways() -> dict[str, Callable[[Any], None]]:
    """What serving does to a model, by name."""
    broadcast = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (0, 1000)}
    magnitude = {"num_inference_steps": 28, "mag_ratios": torch.ones(28), "max_skip_steps": 2, "retention_ratio": 0.0}
    configs: dict[str, Any] = {
        "first block cache": hooks.FirstBlockCacheConfig(threshold=1e6),
        "pyramid attention broadcast": hooks.PyramidAttentionBroadcastConfig(
            **broadcast, current_timestep_callback=lambda: 500
        ),
        "MagCache": hooks.MagCacheConfig(threshold=1e6, **magnitude),
        "TaylorSeer": hooks.TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1, max_order=1),
        "text cache": hooks.TextKVCacheConfig(),
    }
    caches = {name: lambda model, config=config: model.enable_cache(config) for name, config in configs.items()}
    return {"q, k and v fused": lambda model: model.fuse_qkv_projections(), **caches}


def picture(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Some steps in one context, from nothing cached."""
    model._reset_stateful_cache()
    with model.cache_context("one"):
        for _ in range(STEPS):
            drawn = forward(model, inputs)
    return drawn


def measure(model: Any, prepare: Callable[[Any], None], times: int) -> dict[str, Any]:
    """Guarded against plain, under one of them."""
    plain, guarded = copy.deepcopy(model), copy.deepcopy(model)
    apply_masks_(guarded, neuron_masks(guarded))
    for each in (plain, guarded):
        prepare(each)
    inputs = inputs_of(plain, 64, 20, 1)
    steps: dict[str, Step] = {"plain": lambda: picture(plain, inputs), "guarded": lambda: picture(guarded, inputs)}
    with torch.no_grad():
        return dict(time_in_turn(steps, dict.fromkeys(steps, ExitStack), times)["guarded"])


@click.command(help=__doc__)
@click.option("--times", default=60, show_default=True, help="Pictures of each.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(times: int, report: Path | None) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    model = load_pipeline().transformer
    found = {}
    for name, prepare in ways().items():
        found[name] = measure(model, prepare, times)
        ratio, low, high = (found[name][key] for key in ("ratio", "low", "high"))
        click.echo(f"{name:28} {ratio:.3f} of plain ({low:.3f} to {high:.3f})")
    write_report(report, steps=STEPS, guarded=found, times=times)


if __name__ == "__main__":
    main()
