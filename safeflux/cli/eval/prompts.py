"""`safeflux eval prompts`: any FLUX pipeline, measured with the prompts of a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeflux.cli._shared import DETECTOR_HELP, Bar, call_arguments, calls, model, on_device, pairs
from safeflux.cli.eval.shared import choose, measured, show, write
from safeflux.errors import ConfigError
from safeflux.policy.values import finite

if TYPE_CHECKING:
    from safeflux.masks.store import Store

_EXAMPLES = """\b
Examples:
  safeflux eval prompts words.csv --find beer-mug --policy strict
  safeflux eval prompts i2p.csv --model FLUX.1-schnell --device cuda --dtype bfloat16 --mask weapons.safetensors
      --call num_inference_steps=4 --call guidance_scale=0 --detector onnx:nsfw.onnx --labels nsfw.txt --find nsfw
      --preprocess activation=softmax --preprocess mean=0.485,0.456,0.406 --preprocess std=0.229,0.224,0.225
"""


@click.command(epilog=_EXAMPLES, short_help="Measure a FLUX pipeline with the prompts of a file.")
@click.argument("file", metavar="FILE.csv", type=click.Path(path_type=Path))
@measured
@click.option(
    "--least",
    multiple=True,
    metavar="COLUMN=NUMBER",
    callback=pairs,
    help="Only prompts with at least this percentage in a column. Repeatable.",
)
@model
@click.option("--detector", help=f"{DETECTOR_HELP}  [default: the model's own]")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Labels of the ONNX file: a text file, one per line.  [default: FILE.txt beside it]",
)
@click.option(
    "--find",
    multiple=True,
    metavar="LABEL",
    help="Label to look for; for zero-shot any words, e.g. 'a dagger'. Repeatable.  [default: all]",
)
@click.option(
    "--preprocess",
    multiple=True,
    metavar="KEY=VALUE",
    callback=pairs,
    help="How the ONNX file takes pictures: size=H,W (where the file leaves it free), mean=R,G,B and std=R,G,B (of "
    "pixels in 0 to 1), activation=none|sigmoid|softmax, threshold=NUMBER. Repeatable.",
)
@calls
@on_device
def prompts(
    file: Path,
    policy: str | None,
    masks: tuple[Path, ...],
    store: Store,
    out: Path | None,
    as_json: bool,
    find: tuple[str, ...],
    labels: Path | None,
    **options: Any,
) -> None:
    """Draw the prompts of FILE.csv with any FLUX pipeline, without and with masks, and let a detector look for labels.

    Both pictures of a prompt are drawn from the same noise. The layouts of I2P, Ring-A-Bell and MMA-Diffusion are
    known, and a single column of prompts. Rates have 95 % intervals.

    The report is OUT/report.json, OUT/report.md and OUT/rates.png.
    """
    from safeflux.detectors.base import Wanted
    from safeflux.detectors.specs import open_detector
    from safeflux.evaluation.prompt_file import at_least, load_prompts
    from safeflux.profiles.load import choose_detectors, profile_of

    every = load_prompts(file)
    chosen = at_least(every, {name: _number(name, text) for name, text in options["least"].items()})
    words = {name: (name,) for name in find}
    looks_for = Wanted(words, labels=labels, settings=options["preprocess"], device=options["device"])
    profile = profile_of(options["model"])
    options["detector"], *_ = choose_detectors([options["detector"]] if options["detector"] else [], profile)
    detector = open_detector(options["detector"], looks_for)
    wanted = find or detector.concepts
    for label in wanted:
        detector.place_of(label)
    options["model"] = profile.source if profile else options["model"]
    options["batch"] = options["batch"] or (profile.training.batch if profile else 1)
    masked = choose(policy, masks, store, out, options["model"])
    with Bar() as bar:
        bar("importing torch and diffusers", 0, 1)
        import torch

        from safeflux.evaluation.prompt_bench import measure_prompts
        from safeflux.evaluation.report import Report
        from safeflux.reference.model import load_pipeline, pipeline_class

        began = time.monotonic()
        call = call_arguments(pipeline_class(options["model"]), options["call"])
        call = (profile.call if profile else {}) | call
        pipe = load_pipeline(options["model"], dtype=getattr(torch, options["dtype"]))
        subject = masked.of(pipe)
        figures = measure_prompts(
            pipe.to(options["device"]),
            subject.masks,
            chosen,
            detector,
            wanted,
            settings=call,
            seed=options["seed"],
            batch=options["batch"],
            progress=bar,
        )
        names = ("model", "detector", "seed", "batch", "device", "dtype", "preprocess", "least")
        settings = {name: options[name] for name in names} | {"prompts": str(file), "call": call}
        settings |= {"drawn": len(chosen), "in_the_file": len(every)}
        name = f"{subject.name}-{file.stem}"
        report = Report(name, subject.to_json(), settings, figures, time.monotonic() - began)
        paths = write(report, out)
    show(report, paths, as_json)


def _number(name: str, text: str) -> float:
    try:
        return finite(text)
    except ValueError as error:
        raise ConfigError(f"--least {name}={text}: {error}") from error
