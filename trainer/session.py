"""One whole training run: load the model, run the rounds, make the masks small, write the mask files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safeflux.trainer.config import TrainConfig, load_config, make_config
from safeflux.trainer.curves import Curve, read_rounds, write_curves
from safeflux.trainer.embedded import embedded_options
from safeflux.trainer.export import export
from safeflux.trainer.logs import RoundReport
from safeflux.trainer.loop import Run
from safeflux.trainer.minimise import Point, minimise
from safeflux.trainer.processes import Processes
from safeflux.trainer.validation import VALIDATION_SEED, JudgeValidator, found, right, validate

from safeflux.atomic import write_atomically
from safeflux.errors import ConfigError, TrainError
from safeflux.masks import compose
from safeflux.reference import NAME
from safeflux.reference.judge import Judge
from safeflux.reference.model import load_pipeline

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Result:
    """What a session made."""

    paths: dict[str, Path]
    """Category -> its mask file."""
    sha256: dict[str, str]
    masked: dict[str, int]
    """Category -> bits that are off."""
    bits: int
    """How many could be off."""
    share_masked: float
    """Off in all masks AND-ed, of these."""
    validation: dict[str, Any]
    """Category -> what validation found at the end; empty for a model that nothing can validate."""
    reaches_target: bool
    """Whether validation found every category seldom enough."""


def plan_run(
    categories: Sequence[str], config: Path | None, settings: Sequence[str], given: dict[str, Any]
) -> TrainConfig:
    """The configuration from a file or, for categories of the embedded model, from its vocabulary.

    Args:
        categories: Categories of the embedded model; not with `config`.
        config: A YAML file.
        settings: `key.sub=value` texts that replace single options; values are YAML.
        given: Top-level options that replace those of the file.

    Raises:
        ConfigError: Neither or both of the first two, or an option that is not valid.
    """
    if bool(categories) == (config is not None):
        raise ConfigError("expected either categories of the embedded model or a configuration file, not both or none")
    if config is not None:
        planned = load_config(config, given)
    else:
        planned = make_config({**embedded_options(categories), **given}, ", ".join(categories))
    data = planned.model_dump(by_alias=True)
    for setting in settings:
        _set(data, setting)
    return make_config(data, "--set")


def _set(data: dict[str, Any], setting: str) -> None:
    """Replace one option in place; an unknown last key is left to the check that follows."""
    path, equals, value = setting.partition("=")
    *parents, last = path.split(".")
    for parent in parents:
        if not isinstance(data.get(parent), dict):
            raise ConfigError(
                f"--set {setting}: there is no group of options {parent!r}; "
                "the groups are categories, prompts, saliency and gates"
            )
        data = data[parent]
    if not equals:
        raise ConfigError(f"--set {setting}: expected KEY=VALUE, e.g. saliency.rounds=20")
    data[last] = yaml.safe_load(value)


def run(
    config: TrainConfig,
    folder: Path,
    progress: Callable[[RoundReport, int], None],
    drawn: Callable[[int, int], None] = lambda done, total: None,
) -> Result | None:
    """Train, make the masks small, and write `folder/CATEGORY.safetensors`; an interrupted run goes on.

    Under `accelerate launch` every process calls this. The first one validates and writes; the others return None.

    Args:
        config: What to train.
        folder: Where checkpoint, log, configuration, curves and masks go.
        progress: Called after each round with its report and the number of rounds at most.
        drawn: Called before the rounds, with how many of how many of the base model's outputs there are.

    Raises:
        ConfigError: The folder holds a run of another configuration.
        ModelError: The model cannot be loaded as a FLUX pipeline.
        TrainError: The loss is not finite, the run needs more memory than there is, or the disk is full.
    """
    processes = Processes()  # before any library asks Accelerate on its own
    pipe = load_pipeline(config.model, dtype=getattr(torch, config.dtype)).to(processes.device)
    validator = JudgeValidator(pipe, Judge(), config) if config.model == NAME else None
    told = drawn if processes.is_first else _silent
    training = Run(config, pipe, folder, processes, validator, told)
    if validator is None:
        _release(pipe)
    with _writing(folder):
        for report in training.rounds():
            if processes.is_first:
                progress(report, training.method.most)
        processes.leave()
        return _finish(training, pipe) if processes.is_first else None


def _silent(done: int, total: int) -> None:
    """Another process of the same run tells."""


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say what a full disk, or a folder that cannot be written to, means for the run."""
    try:
        yield
    except OSError as error:
        raise TrainError(
            f"{folder}: cannot be written to ({error.strerror or error}). What is there is whole: make room, and the "
            "same command goes on from the last checkpoint."
        ) from error


def _finish(training: Run, pipe: Any) -> Result:
    """Make the masks small, and write them with the configuration."""
    config, folder, masks = training.config, training.folder, training.masks
    options = config.model_dump(mode="json", by_alias=True)
    write_atomically(folder / CONFIG, yaml.safe_dump(options, sort_keys=False).encode())
    tried: dict[str, list[Point]] = {}
    if config.minimise and training.validator is not None:
        masks, tried = _minimise(training, masks)
    curves = {name: Curve(points, tried.get(name, ())) for name, points in read_rounds(folder).items()}
    if curves:  # nothing validates another model, so that there is nothing to draw
        write_curves(folder, curves, training.bits.count)
    return _export(training, masks, pipe)


def _release(pipe: Any) -> None:
    """Let go of what only encodes prompts and decodes pictures; the references hold all that training needs of it."""
    for part in ("text_encoder", "text_encoder_2", "vae"):
        if getattr(pipe, part, None) is not None:
            setattr(pipe, part, None)


def _minimise(training: Run, masks: torch.Tensor) -> tuple[torch.Tensor, dict[str, list[Point]]]:
    """The mask of each category that is gone in turn, the others as they stand by then: all of these must stay gone."""
    validator, worth, target, curves = training.validator, training.method.worth(), training.config.target_found, {}
    assert validator is not None
    sets = training.sets(masks)
    gone = [name for name in training.names if found(validator, name, sets) <= target]
    masks = masks.clone()
    for k, name in enumerate(training.names):

        def look(row: torch.Tensor, k: int = k, name: str = name) -> tuple[float, float]:
            tried = masks.clone()
            tried[k] = row
            sets = training.sets(tried)
            left = found(validator, name, sets)
            if left <= target:  # else the others need not be asked
                every = compose(*sets.values())
                left = max([left, *(validator.found(other, every) for other in gone if other != name)])
            return left, right(validator, [name], sets)

        if name in gone:
            masks[k], curves[name] = minimise(masks[k], worth[k], look, target)
    return masks, curves


def _export(training: Run, masks: torch.Tensor, pipe: Any) -> Result:
    sets = training.sets(masks)
    seen: dict[str, Any] = {}
    if training.validator is not None:
        validation = validate(training.validator, sets, training.names)
        settings = {"first_seed": VALIDATION_SEED, "pictures": training.config.validation_prompts}
        seen = {
            name: {"validation": {"found": found, "kept": validation.right, **settings}}
            for name, found in zip(training.names, validation.found, strict=True)
        }
    trained = {name: sets[name] for name in training.names}
    sha256 = export(training.folder, trained, training.config, pipe, seen)
    return Result(
        paths={name: training.folder / f"{name}.safetensors" for name in training.names},
        sha256=sha256,
        masked={name: int((~row).count_nonzero()) for name, row in zip(training.names, masks, strict=False)},
        bits=training.bits.count,
        share_masked=float((~masks.all(dim=0)).float().mean()),
        validation=seen,
        reaches_target=training.reaches_target,
    )
