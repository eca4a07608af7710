"""`safeflux eval`: what masks erase and what they leave alone, on the embedded model or any other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeflux.cli._lazy import Group
from safeflux.cli._shared import (
    DETECTOR_HELP,
    Bar,
    call_arguments,
    calls,
    model,
    on_device,
    packs,
    refuse_options_before,
)
from safeflux.cli.eval.prompts import prompts
from safeflux.cli.eval.shared import choose, measured, show, write

if TYPE_CHECKING:
    from safeflux.evaluation.questions import Sizes
    from safeflux.evaluation.report import Report
    from safeflux.masks.store import Store

_EXAMPLES = """\b
Examples:
  safeflux eval --policy strict
  safeflux eval --mask runs/weapons/weapons.safetensors --images 100
  safeflux eval --model my-flux --pack vehicles.yaml --detector zero-shot:my-clip --mask vehicles.safetensors
  safeflux eval prompts words.csv --find beer-mug --policy strict
"""  # \b tells click to keep the line breaks


@click.group(
    "eval",
    cls=Group,
    invoke_without_command=True,
    subcommand_metavar="[prompts FILE.csv ...]",
    epilog=_EXAMPLES,
    short_help="Measure what masks erase and what they leave alone.",
)
@measured
@model
@packs
@click.option(
    "--detector",
    "detectors",
    multiple=True,
    help=f"{DETECTOR_HELP} Repeatable: headlines go by the first; rates are also given by the strictest verdicts.  "
    "[default: the model's own]",
)
@click.option("--images", type=click.IntRange(2, 65536), default=200, show_default=True, help="Pictures per category.")
@click.option("--kept", type=click.IntRange(4, 65536), default=1000, show_default=True, help="Neutral pictures.")
@calls
@on_device
@click.pass_context
def evaluate(
    ctx: click.Context,
    /,
    policy: str | None,
    masks: tuple[Path, ...],
    store: Store,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure what masks erase from a model, and what they leave alone.

    The same prompts are drawn from the same noises without and with the masks, and a detector looks at the pictures:
    how often each erased category is still found (by its name, by words that no mask was trained with, beside a neutral
    thing), how often a trace of it is seen, how often everything else is right (neutral things, nearest neighbours,
    other categories), the harmonic mean of erasing and keeping, structural similarity and contrast. Rates
    have 95 % intervals. Prompts and noises play no part in training.

    The words are those of packs: given ones, the model's own, or bundled ones. A detector's thresholds are chosen on
    the base model's own pictures, and the report says what it finds and misses there. The embedded model has two
    detectors of its own, and every rate is given by each and by their strictest verdicts.

    `safeflux eval prompts` measures with the prompts of a file instead.

    The report is OUT/report.json, OUT/report.md and OUT/rates.png.
    """
    if ctx.invoked_subcommand is not None:
        refuse_options_before(ctx)
        return
    with Bar() as bar:
        report = _measure(policy, masks, store, out, bar, options)
        paths = write(report, out)
        for line in getattr(report.findings, "warnings", ()):
            bar.note(line)
    show(report, paths, as_json)


evaluate.add_command(prompts)


def _sizes(options: dict[str, Any]) -> Sizes:
    from safeflux.evaluation.questions import Sizes

    images = options["images"]
    return Sizes(found=images, details=images, neighbours=images // 2, kept=options["kept"], others=min(48, images))


def _measure(
    policy: str | None, masks: tuple[Path, ...], store: Store, out: Path | None, bar: Bar, options: dict[str, Any]
) -> Report:
    from safeflux.packs.load import load_packs
    from safeflux.profiles.load import load_profile

    profile, packs = load_profile(options["model"]), load_packs(options["packs"])
    chosen = choose(policy, masks, store, out, profile.source)
    bar("importing torch and diffusers", 0, 1)
    import torch

    from safeflux.evaluation.report import Report
    from safeflux.evaluation.worded.measure import Measuring
    from safeflux.reference.model import load_pipeline, pipeline_class

    began = time.monotonic()
    call = profile.call | call_arguments(pipeline_class(profile.source), options["call"])
    pipe = load_pipeline(profile.source, dtype=getattr(torch, options["dtype"])).to(options["device"])
    subject = chosen.of(pipe)
    batch = options["batch"] = options["batch"] or profile.training.batch
    measuring = Measuring.of(
        profile, subject.concepts, packs, options["detectors"], _sizes(options), options["seed"], options["device"]
    )
    figures = measuring.measure(pipe, subject.masks, settings=call, batch=batch, progress=bar)
    settings = {name: options[name] for name in ("seed", "batch", "device", "dtype")}
    settings |= {"model": profile.source, "call": call, **measuring.to_json()}
    return Report(subject.name, subject.to_json(), settings, figures, time.monotonic() - began)
