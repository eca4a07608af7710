"""`safeflux eval` and `safeflux eval prompts`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml
from rich.console import Console
from rich.table import Table

from safeflux.cli._completion import POLICY
from safeflux.cli._lazy import Group
from safeflux.cli._shared import DETECTOR_HELP, Bar, on_device, writable
from safeflux.cli._shared import masks as mask_stores
from safeflux.disk.folders import check_writable
from safeflux.errors import ConfigError
from safeflux.reference import NAME

if TYPE_CHECKING:
    from safeflux.evaluation.report import Report
    from safeflux.evaluation.subject import Subject
    from safeflux.masks.store import Store

_REPORTS = Path("runs") / "eval"


def _pairs(ctx: click.Context, parameter: click.Parameter, settings: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE texts as a dictionary."""
    parts = [setting.partition("=") for setting in settings]
    for key, equals, _ in parts:
        if not (key and equals):
            raise click.BadParameter(f"expected KEY=VALUE, got {key!r}", ctx, parameter)
    return {key: value for key, _, value in parts}


def _measured(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that both commands have: what is measured, the seed, and where the report goes."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object, not as a table."),
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            callback=writable,
            help="Folder for the report; created if it does not exist.  [default: runs/eval/NAME]",
        ),
        click.option(
            "--seed", type=click.IntRange(0, 4095), default=0, show_default=True, help="Seed of prompts and noises."
        ),
        click.option(
            "--mask",
            "masks",
            type=click.Path(path_type=Path),
            multiple=True,
            help="Mask file to measure instead of a policy. Repeatable: the masks are combined.",
        ),
        mask_stores,
        click.option("--policy", type=POLICY, help="Bundled policy, or path of a YAML file.  [default: strict]"),
    ):
        command = option(command)
    return command


_EXAMPLES = """\b
Examples:
  safeflux eval --policy strict
  safeflux eval --mask runs/weapons/weapons.safetensors --images 100
  safeflux eval prompts words.csv --find beer-mug --policy strict
"""  # click reads the backspace as: keep these lines


@click.group(
    "eval",
    cls=Group,
    invoke_without_command=True,
    subcommand_metavar="[prompts FILE.csv ...]",
    epilog=_EXAMPLES,
    short_help="Measure what masks erase and what they leave alone.",
)
@_measured
@click.option("--images", type=click.IntRange(2, 65536), default=200, show_default=True, help="Pictures per category.")
@click.option("--kept", type=click.IntRange(4, 65536), default=1000, show_default=True, help="Neutral pictures.")
@click.pass_context
def evaluate(
    ctx: click.Context,
    /,
    policy: str | None,
    masks: tuple[Path, ...],
    store: Store,
    seed: int,
    out: Path | None,
    as_json: bool,
    images: int,
    kept: int,
) -> None:
    """Measure what masks erase from the embedded model, and what they leave alone.

    The same prompts are drawn from the same noises without and with the masks, and the judge looks at the pictures: how
    often each erased category is still found (by its name, by words that no mask was trained with, beside a neutral
    thing), how often everything else is right (neutral concepts, nearest neighbours, other categories, style,
    background), the harmonic mean of both, structural similarity and Frechet distance. Rates have 95 % intervals.
    Prompts, noises and judge play no part in training.

    `safeflux eval prompts` measures any FLUX pipeline with the prompts of a file instead.

    The report is OUT/report.json, OUT/report.md and OUT/rates.png.
    """
    if ctx.invoked_subcommand is not None:
        for parameter in ctx.command.params:
            if ctx.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(
                    f"{parameter.opts[0]} stands before `{ctx.invoked_subcommand}`, where it has no effect; "
                    f"`safeflux eval {ctx.invoked_subcommand} --help` lists the options that go behind it"
                )
        return
    subject_of = _subject_reader(policy, masks, out, NAME, store)
    with Bar() as bar:
        bar("importing torch and diffusers", 0, 1)
        from safeflux.evaluation.bench import Bench
        from safeflux.evaluation.questions import FIRST_SEED, Sizes, target_of
        from safeflux.evaluation.report import Report
        from safeflux.reference.judge import Judge
        from safeflux.reference.model import EMOJI_FLUX_CALL, load_pipeline

        began, pipe = time.monotonic(), load_pipeline()
        subject = subject_of(pipe)
        targets = [target_of(category, concepts) for category, concepts in subject.concepts.items()]
        sizes = Sizes(found=images, details=images, neighbours=images // 2, kept=kept, others=min(48, images))
        bench = Bench(pipe, Judge(), sizes=sizes, seed=seed, progress=bar)
        figures = bench.measure(subject.masks, targets)
        settings = {"model": NAME, "call": EMOJI_FLUX_CALL, "pictures": vars(sizes), "seed": seed}
        settings |= {"first_noise_seed": FIRST_SEED}
        report = Report(subject.name, subject.to_json(), settings, figures, time.monotonic() - began)
        paths = _write(report, out)
    _print(report, paths, as_json)


_PROMPT_EXAMPLES = """\b
Examples:
  safeflux eval prompts words.csv --find beer-mug --policy strict
  safeflux eval prompts i2p.csv --model FLUX.1-schnell --device cuda --dtype bfloat16 --mask weapons.safetensors
      --call num_inference_steps=4 --call guidance_scale=0 --detector onnx:nsfw.onnx --labels nsfw.txt --find nsfw
      --preprocess activation=softmax --preprocess mean=0.485,0.456,0.406 --preprocess std=0.229,0.224,0.225

\b
--preprocess takes size=H,W (where the file leaves it free), mean=R,G,B and std=R,G,B (of pixels in 0 to 1),
activation=none|sigmoid|softmax, threshold=NUMBER.
"""


@evaluate.command(epilog=_PROMPT_EXAMPLES, short_help="Measure a FLUX pipeline with the prompts of a file.")
@click.argument("file", metavar="FILE.csv", type=click.Path(path_type=Path))
@_measured
@click.option(
    "--least",
    multiple=True,
    metavar="COLUMN=NUMBER",
    callback=_pairs,
    help="Only prompts with at least this percentage in a column. Repeatable.",
)
@click.option("--model", default=NAME, show_default=True, help="A profile (flux2-klein-4b), hub id or folder.")
@click.option("--detector", default="judge", show_default=True, help=DETECTOR_HELP)
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
    "--preprocess", multiple=True, metavar="KEY=VALUE", callback=_pairs, help="How the ONNX file takes pictures."
)
@click.option("--call", multiple=True, metavar="KEY=VALUE", callback=_pairs, help="Argument of the pipeline's call.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Pictures drawn at a time.")
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
    from safeflux.profiles.load import profile_of

    every = load_prompts(file)
    chosen = at_least(every, {name: _number(name, text) for name, text in options["least"].items()})
    words = {name: (name,) for name in find}
    looks_for = Wanted(words, labels=labels, settings=options["preprocess"], device=options["device"])
    detector = open_detector(options["detector"], looks_for)
    wanted = find or detector.concepts
    for label in wanted:
        detector.place_of(label)
    profile = profile_of(options["model"])
    options["model"] = profile.source if profile else options["model"]
    subject_of = _subject_reader(policy, masks, out, options["model"], store)
    with Bar() as bar:
        bar("importing torch and diffusers", 0, 1)
        import torch

        from safeflux.evaluation.prompt_bench import measure_prompts
        from safeflux.evaluation.report import Report
        from safeflux.reference.model import load_pipeline, pipeline_class

        began = time.monotonic()
        call = _call(pipeline_class(options["model"]), options["call"])
        call = (profile.call if profile else {}) | call
        pipe = load_pipeline(options["model"], dtype=getattr(torch, options["dtype"]))
        subject = subject_of(pipe)
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
        paths = _write(report, out)
    _print(report, paths, as_json)


def _subject_reader(
    policy: str | None, masks: tuple[Path, ...], out: Path | None, model: str, store: Store
) -> Callable[[Any], Subject]:
    """Check the folder, and the policy or the masks on the model's files, before the model is loaded."""
    if policy and masks:
        raise click.UsageError("give either --policy or --mask, not both")
    check_writable(out or _REPORTS)
    from safeflux.evaluation.subject import MaskFile, check_early, files_subject, policy_subject
    from safeflux.policy.load import load_policy

    if masks:
        files = [MaskFile.read(path) for path in masks]
        check_early(files, model)
        return lambda pipe: files_subject(files, pipe)
    loaded = load_policy(policy or "strict")
    check_early(loaded, model, store)
    return lambda pipe: policy_subject(loaded, pipe, store)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--least {name}={text}: expected a number") from error


def _call(pipeline: type, settings: dict[str, str]) -> dict[str, Any]:
    """Arguments of a pipeline's call, values read as YAML; an unknown one is refused before the model loads."""
    import inspect

    known = set(inspect.signature(pipeline.__call__).parameters) - {"self", "prompt", "generator"}
    for key in settings:
        if key not in known:
            raise ConfigError(f"--call {key}: {pipeline.__name__} takes {', '.join(sorted(known))}")
    return {key: yaml.safe_load(value) for key, value in settings.items()}


def _write(report: Report, out: Path | None) -> dict[str, Path]:
    """Write the report. Mask files and policies come from others: of their names only safe characters are used."""
    return report.write(out or _REPORTS / re.sub(r"[^A-Za-z0-9_+-]+", "-", report.name))


def _print(report: Report, paths: dict[str, Path], as_json: bool) -> None:
    """The report as JSON, or a table of its rates, the other figures, and the files."""
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        table = Table(box=None, pad_edge=False)
        table.add_column("share of pictures, 95 % interval", no_wrap=True)
        for heading in ("base", "masked"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, pair in report.findings.rows.items():
            table.add_row(name, str(pair.base), str(pair.masked))
        Console(width=140, highlight=False, markup=False).print(table)
        lines = [f"{name}: {text}" for name, text in report.findings.facts.items()]
        click.echo("\n".join(["", *lines, "", *(f"{name:8}{path}" for name, path in paths.items())]))
    if missing := [name for name in ("matplotlib", "skimage") if find_spec(name) is None]:
        click.echo(
            f"skipped: {' and '.join(missing)} not installed; get them with pip install 'safeflux[eval]'", err=True
        )
