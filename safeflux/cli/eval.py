"""`safeflux eval`."""

from __future__ import annotations

import json
import re
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml
from rich.console import Console
from rich.table import Table

from safeflux.cli._shared import Bar, writable
from safeflux.errors import ConfigError
from safeflux.reference import NAME

if TYPE_CHECKING:
    from safeflux.detectors import Detector
    from safeflux.subject import Subject
    from safeflux.trainer.report import Report

_WITHOUT_PROMPTS = ("images", "kept")
_WITH_PROMPTS = ("least", "model", "detector", "labels", "find", "preprocess", "call", "batch", "device", "dtype")


def _pairs(ctx: click.Context, parameter: click.Parameter, settings: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE texts as a dictionary."""
    parts = [setting.partition("=") for setting in settings]
    for key, equals, _ in parts:
        if not (key and equals):
            raise click.BadParameter(f"expected KEY=VALUE, got {key!r}", ctx, parameter)
    return {key: value for key, _, value in parts}


_EXAMPLES = """\b
Examples:
  safeflux eval --policy strict
  safeflux eval --mask runs/weapons/weapons.safetensors --images 100
  safeflux eval --prompts words.csv --find beer-mug --policy strict
  safeflux eval --prompts i2p.csv --model FLUX.1-schnell --device cuda --dtype bfloat16 --mask weapons.safetensors
      --call num_inference_steps=4 --call guidance_scale=0 --detector nsfw.onnx --labels nsfw.txt --find nsfw
      --preprocess activation=softmax --preprocess mean=0.485,0.456,0.406 --preprocess std=0.229,0.224,0.225

\b
--preprocess takes size=H,W (where the file leaves it free), mean=R,G,B and std=R,G,B (of pixels in 0 to 1),
activation=none|sigmoid|softmax, threshold=NUMBER.
"""  # click reads the backspace as: keep these lines


@click.command("eval", epilog=_EXAMPLES, short_help="Measure what masks erase and what they leave alone.")
@click.option("--policy", help="Name of a bundled policy, or path of a YAML file.  [default: strict]")
@click.option(
    "--mask",
    "masks",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Mask file, instead of a policy; what it should erase is read from it. Repeatable: they are AND-ed.",
)
@click.option("--images", type=click.IntRange(2, 65536), default=200, show_default=True, help="Pictures a category.")
@click.option("--kept", type=click.IntRange(4, 65536), default=1000, show_default=True, help="Neutral pictures.")
@click.option("--seed", type=click.IntRange(0, 4095), default=0, show_default=True, help="Of prompts and noises.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    callback=writable,
    help="Folder for the report; made if need be.  [default: runs/eval/NAME]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object instead of the table.")
@click.option("--prompts", type=click.Path(path_type=Path), help="CSV file of prompts, instead of the vocabulary's.")
@click.option(
    "--least",
    multiple=True,
    metavar="COLUMN=NUMBER",
    callback=_pairs,
    help="With --prompts: only those with at least so much in a column of percentages. Repeatable.",
)
@click.option("--model", default=NAME, show_default=True, help="With --prompts: folder of any FLUX pipeline.")
@click.option("--detector", default="judge", show_default=True, help="With --prompts: judge, opennsfw, or FILE.onnx.")
@click.option("--labels", type=click.Path(path_type=Path), help="Labels of FILE.onnx: a text file, one a line.")
@click.option("--find", multiple=True, metavar="LABEL", help="Label to look for. Repeatable.  [default: all]")
@click.option("--preprocess", multiple=True, metavar="KEY=VALUE", callback=_pairs, help="What FILE.onnx wants to see.")
@click.option("--call", multiple=True, metavar="KEY=VALUE", callback=_pairs, help="Argument of the pipeline's call.")
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="With --prompts: pictures at a time."
)
@click.option("--device", default="cpu", show_default=True, help="With --prompts: where to draw, e.g. cuda.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="With --prompts: of the weights.",
)
@click.pass_context
def evaluate(ctx: click.Context, /, policy: str | None, masks: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Draw the same prompts from the same noises without and with masks, and count what is found in the pictures.

    On the embedded model: how often each erased category is still found (by its name, by words that no mask was
    trained with, beside a neutral thing), how often everything else is right (neutral concepts, nearest neighbours,
    other categories, style, background), the harmonic mean of both, structural similarity and Frechet distance.
    Prompts, noises and judge are kept out of training. Rates have 95 % intervals.

    With --prompts: the prompts of a CSV file (the layouts of I2P, Ring-A-Bell and MMA-Diffusion are known, and a
    single column), drawn by any FLUX pipeline, and how often a detector finds its labels.

    Writes report.json, report.md and rates.png to OUT.
    """
    if policy and masks:
        raise click.UsageError("give either --policy or --mask, not both")
    _check_scope(ctx)
    measure = _measure_prompts if options["prompts"] else _measure_embedded
    with Bar() as bar:
        bar("importing torch and diffusers", 0, 1)
        report = measure(policy or "strict", masks, options, bar)
        # A name may hold anything, since mask files and policies come from others; a folder's must not.
        folder = options["out"] or Path("runs") / "eval" / re.sub(r"[^A-Za-z0-9_+-]+", "-", report.name)
        paths = report.write(folder)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        _print(report)
        click.echo("\n" + "\n".join(f"{name:8}{path}" for name, path in paths.items()))
    if missing := [name for name in ("matplotlib", "skimage") if find_spec(name) is None]:
        click.echo(
            f"left out, for want of {' and '.join(missing)}: get them with pip install 'safeflux[eval]'", err=True
        )


def _check_scope(ctx: click.Context) -> None:
    """Refuse options that the chosen way of measuring would not heed."""
    has_prompts = ctx.params["prompts"] is not None
    for name in _WITHOUT_PROMPTS if has_prompts else _WITH_PROMPTS:
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} is for use {'without' if has_prompts else 'with'} --prompts")


def _subject(policy: str, masks: tuple[Path, ...], pipe: Any) -> Subject:
    from safeflux.subject import files_subject, policy_subject

    return files_subject(masks, pipe) if masks else policy_subject(policy, pipe)


def _measure_embedded(policy: str, masks: tuple[Path, ...], options: dict[str, Any], bar: Bar) -> Report:
    """The vocabulary's questions to the embedded model, by its judge."""
    from safeflux.reference.judge import Judge
    from safeflux.reference.model import CALL, load_pipeline
    from safeflux.trainer.bench import Bench
    from safeflux.trainer.questions import FIRST_SEED, Sizes
    from safeflux.trainer.report import Report

    began, pipe = time.monotonic(), load_pipeline()
    subject = _subject(policy, masks, pipe)
    images = options["images"]
    sizes = Sizes(found=images, details=images, neighbours=images // 2, kept=options["kept"], others=min(48, images))
    bench = Bench(pipe, Judge(), sizes=sizes, seed=options["seed"], progress=bar)
    figures = bench.measure(subject.masks, subject.categories)
    settings = {"model": NAME, "call": CALL, "pictures": vars(sizes), "seed": options["seed"]}
    settings |= {"first_noise_seed": FIRST_SEED}
    return Report(subject.name, subject.to_json(), settings, figures, time.monotonic() - began)


def _measure_prompts(policy: str, masks: tuple[Path, ...], options: dict[str, Any], bar: Bar) -> Report:
    """A file's prompts to any FLUX pipeline, by a detector. What is wrong in a file is told before the model loads."""
    from safeflux.promptfile import at_least, load_prompts

    every = load_prompts(options["prompts"])
    prompts = at_least(every, {name: _number(name, text) for name, text in options["least"].items()})
    detector = _detector(options)
    wanted = options["find"] or detector.labels
    for label in wanted:
        detector.place_of(label)
    import torch

    from safeflux.reference.model import CALL, load_pipeline
    from safeflux.trainer.promptbench import measure_prompts
    from safeflux.trainer.report import Report

    began, is_embedded = time.monotonic(), options["model"] == NAME
    pipe = load_pipeline(options["model"], dtype=getattr(torch, options["dtype"]))
    subject = _subject(policy, masks, pipe)
    call = (CALL if is_embedded else {}) | _call(pipe, options["call"])
    figures = measure_prompts(
        pipe.to(options["device"]),
        subject.masks,
        prompts,
        detector,
        wanted,
        settings=call,
        seed=options["seed"],
        batch=options["batch"],
        progress=bar,
    )
    settings = {name: options[name] for name in ("model", "detector", "seed", "batch", "device", "dtype", "preprocess")}
    settings |= {"prompts": str(options["prompts"]), "least": options["least"], "call": call}
    settings |= {"drawn": len(prompts), "in_the_file": len(every)}
    return Report(
        f"{subject.name}-{options['prompts'].stem}", subject.to_json(), settings, figures, time.monotonic() - began
    )


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--least {name}={text}: expected a number") from error


def _detector(options: dict[str, Any]) -> Detector:
    from safeflux.detectors import JudgeDetector, OnnxDetector, OpenNsfwDetector, make_preprocessing
    from safeflux.reference.judge import Judge

    name = options["detector"]
    if name in ("judge", "opennsfw") and (options["labels"] or options["preprocess"]):
        raise ConfigError(f"detector {name!r} brings its own labels and preprocessing; leave those options out")
    if name == "judge":
        return JudgeDetector(Judge())
    if name == "opennsfw":
        return OpenNsfwDetector()
    if options["labels"] is None:
        raise ConfigError(f"{name}: its labels are not known; give a text file with one label a line by --labels")
    return OnnxDetector(name, options["labels"], make_preprocessing(options["preprocess"]))


def _call(pipe: Any, settings: dict[str, str]) -> dict[str, Any]:
    """Arguments of the pipeline's call, values read as YAML; an unknown one is refused before anything is drawn."""
    import inspect

    known = set(inspect.signature(pipe.__call__).parameters) - {"prompt", "generator"}
    for key in settings:
        if key not in known:
            raise ConfigError(f"--call {key}: {type(pipe).__name__} takes {', '.join(sorted(known))}")
    return {key: yaml.safe_load(value) for key, value in settings.items()}


def _print(report: Report) -> None:
    """The table of rates, then what is no rate."""
    table = Table(box=None, pad_edge=False)
    table.add_column("share of pictures, 95 % interval", no_wrap=True)
    for heading in ("base", "masked"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, pair in report.findings.rows.items():
        table.add_row(name, str(pair.base), str(pair.masked))
    Console(width=140, highlight=False, markup=False).print(table)
    click.echo()
    for name, text in report.findings.facts.items():
        click.echo(f"{name}: {text}")
