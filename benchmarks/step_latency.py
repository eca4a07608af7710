"""The cost of a guarded model per sampling step, beside the other ways to keep a concept out.

    python -m benchmarks.step_latency --report benchmarks/reports/step_latency.json

One forward of the transformer, in turn by each of: `plain`; `control`, the same after masks were written and taken
back, which shows what the writing beforehand does to the clock; `guarded`, with neuron masks in its weights; `hooks`,
where forward hooks multiply activations with the same masks, as the published code of Minimalist Concept Erasure does;
and `SLD`, safe latent diffusion (arXiv 2211.05105), which steers each step away from a concept and so needs the model's
answers for the empty prompt and for the concept too, in one batch of three. On the embedded model, and on one double
and one single block of FLUX.1's width in bf16. Ratios are of neighbours in time; medians with 95 % intervals of the
median, one thread. Guarded and hooked models are first shown to answer alike.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.guard_scale import build
from benchmarks.timing import milliseconds, write_report
from safeflux.families.sites import find_sites
from safeflux.masks.mask_set import MaskSet
from safeflux.model.apply import apply_masks_
from safeflux.reference.model import load_pipeline

SHARE_OFF = 0.3
THRESHOLD, SCALE = 0.01, 0.5
_BLOCKS = "two blocks of FLUX.1's width, bf16, 64 image and 64 text tokens"
Step = Callable[[], torch.Tensor]


def inputs_of(model: Any, image_tokens: int, text_tokens: int, batch: int) -> dict[str, torch.Tensor]:
    """Random inputs of one forward."""
    draw = torch.Generator().manual_seed(0)
    config, side = model.config, int(image_tokens**0.5)
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
    found = {
        "hidden_states": torch.randn(1, side * side, config.in_channels, generator=draw).expand(batch, -1, -1),
        "encoder_hidden_states": torch.randn(batch, text_tokens, config.joint_attention_dim, generator=draw),
        "pooled_projections": torch.randn(batch, config.pooled_projection_dim, generator=draw),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": torch.cat([torch.zeros(side * side, 1), places], dim=1),
        "txt_ids": torch.zeros(text_tokens, 3),
    }
    if config.guidance_embeds:
        found["guidance"] = torch.full((batch,), 3.5)
    return {name: value.to(model.dtype) for name, value in found.items()}


def forward(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's velocity."""
    return model(**inputs, return_dict=False)[0]


def steered(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The velocity of the prompt, steered from that of the concept as in arXiv 2211.05105, without its momentum."""
    prompt, empty, concept = forward(model, inputs).chunk(3)
    difference = prompt - concept
    scale = torch.where(difference < THRESHOLD, (SCALE * difference.abs()).clamp(max=1), 0)
    return prompt - scale * (concept - empty)


def hook_up(model: Any, masks: MaskSet, stack: ExitStack) -> None:
    """Multiply activations with the masks: of FFN neurons after their nonlinearity, of modulation after its layer."""
    for name, mask in masks.items():
        path, _, kind = name.partition(":")
        block = model.get_submodule(path)
        layer = {"ff": lambda b: b.net[0], "norm": lambda b: b.linear, "mlp": lambda b: b.act_mlp}[kind](block)
        keep = torch.from_numpy(mask).to(model.dtype)
        handle = layer.register_forward_hook(lambda _, __, out, keep=keep: out * keep)
        stack.callback(handle.remove)


def time_in_turn(steps: dict[str, Step], changes: dict[str, Callable[[], Any]], times: int) -> dict[str, Any]:
    """Milliseconds of each way, in an order that rotates; setting up and warming up are not timed."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for run in range(times):
        for name in names[run % len(names) :] + names[: run % len(names)]:
            step = steps[name]
            with changes[name]():
                step()  # or the caches would hold what the setting up has touched
                taken[name].append(milliseconds(step))
    kept = {name: np.array(values) for name, values in taken.items()}
    return {
        name: {"milliseconds": float(np.median(values)), **_interval(values / kept["plain"])}
        for name, values in kept.items()
    }


def _interval(ratios: np.ndarray[Any, Any]) -> dict[str, float]:
    """The median, and its interval by order statistics."""
    ordered, half = np.sort(ratios), 0.98 * len(ratios) ** 0.5
    low, high = (ordered[int(np.clip(len(ordered) / 2 + side, 0, len(ordered) - 1))] for side in (-half, half))
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}


def neuron_masks(model: Any) -> MaskSet:
    """Some of all neurons off, at random."""
    draw = torch.Generator().manual_seed(1)
    sites = [site for site in find_sites(model).values() if site.kind in ("ff", "norm", "mlp")]
    return MaskSet({site.name: torch.rand(site.shape, generator=draw) >= SHARE_OFF for site in sites})


def measure(model: Any, image_tokens: int, text_tokens: int, times: int) -> dict[str, Any]:
    """All four ways on one model."""
    masks = neuron_masks(model)
    one, three = (inputs_of(model, image_tokens, text_tokens, batch) for batch in (1, 3))

    def hooked() -> ExitStack:
        stack = ExitStack()
        hook_up(model, masks, stack)
        return stack

    def rewritten() -> ExitStack:
        apply_masks_(model, masks).restore_()
        return ExitStack()

    steps: dict[str, Step] = {name: lambda: forward(model, one) for name in ("plain", "control", "guarded", "hooks")}
    steps["SLD"] = lambda: steered(model, three)
    changes: dict[str, Callable[[], Any]] = {
        "plain": ExitStack,
        "control": rewritten,
        "hooks": hooked,
        "SLD": ExitStack,
    }
    changes |= {"guarded": lambda: apply_masks_(model, masks), "SLD": ExitStack}
    with torch.no_grad():
        answers = {}
        for name in ("plain", "guarded", "hooks"):
            with changes[name]():
                answers[name] = forward(model, one).float()
        size = answers["plain"].square().mean().sqrt()
        difference = float((answers["guarded"] - answers["hooks"]).square().mean().sqrt() / size)
        changed = float((answers["guarded"] - answers["plain"]).square().mean().sqrt() / size)
        if not difference < 0.02 < changed:
            raise SystemExit(f"guarded and hooked models answer {difference:.3g} apart, and {changed:.3g} from plain")
        return time_in_turn(steps, changes, times) | {"difference of guarded and hooks": difference}


@click.command(help=__doc__)
@click.option("--times", default=300, show_default=True, help="Steps on the embedded model; a tenth on the other.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(times: int, report: Path | None) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    models = {
        "emoji-flux, 64 image and 20 text tokens": (load_pipeline().transformer, 64, 20, times),
        _BLOCKS: (build(1, one_image_stream=False), 64, 64, max(10, times // 10)),
    }
    found = {}
    for name, (model, image, text, count) in models.items():
        found[name] = measure(model, image, text, count)
        click.echo(name)
        for way in ("plain", "control", "guarded", "hooks", "SLD"):
            each = found[name][way]
            click.echo(
                f"  {way:8} {each['milliseconds']:9.2f} ms   {each['ratio']:.3f} of plain "
                f"({each['low']:.3f} to {each['high']:.3f})"
            )
    write_report(report, steps=found, times=times)


if __name__ == "__main__":
    main()
