"""One whole training run: check, load the model, run the rounds, make the masks small, write the mask files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.judged import erased_things, judged_targets
from safeflux.trainer.asked.options import detector_of
from safeflux.trainer.objective.references import read_image
from safeflux.trainer.objective.vectors import share_masked
from safeflux.trainer.processes import Processes
from safeflux.trainer.run.base import Base, choose_sites
from safeflux.trainer.run.blind import Eyes
from safeflux.trainer.run.checkpoint import read_checkpoint
from safeflux.trainer.run.curves import Curve, read_rounds, write_curves
from safeflux.trainer.run.export import export
from safeflux.trainer.run.given import GivenMasks
from safeflux.trainer.run.logs import RoundReport, board_writer
from safeflux.trainer.run.looking import CommonValidator, DetectorValidator, open_for
from safeflux.trainer.run.loop import Run
from safeflux.trainer.run.minimise import Point, minimise
from safeflux.trainer.run.validation import (
    VALIDATION_SEED,
    JudgeValidator,
    Validator,
    found,
    right,
    validate,
)

from safeflux.disk.atomic import write_atomically
from safeflux.disk.folders import check_writable
from safeflux.disk.locking import check_unlocked, locked
from safeflux.errors import ConfigError, TrainError
from safeflux.evaluation.bench import Progress
from safeflux.evaluation.subject import source_of
from safeflux.masks.mask_set import compose
from safeflux.profiles.load import profile_of
from safeflux.reference.judge import Judge
from safeflux.reference.model import load_pipeline, pipeline_class

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Result:
    """The mask files of a finished run, and the figures of its end."""

    paths: dict[str, Path]
    """Category -> its mask file."""
    sha256: dict[str, str]
    masked: dict[str, int]
    """Category -> bits that are off."""
    bits: int
    """How many could be off."""
    share_masked: float
    """Share of these that any mask switches off."""
    validation: dict[str, Any]
    """Category -> the figures of the last validation; empty for a model that nothing validates."""
    reaches_target: bool
    """Whether validation found every category seldom enough; False where nothing validates."""
    precision: str
    """Dtype of matrix products: `bfloat16` or `float32`."""


def is_validated(config: TrainConfig) -> bool:
    """Whether a detector looks at the pictures of a run's masks."""
    return detector_of(config) is not None


def run(
    config: TrainConfig,
    folder: Path,
    progress: Callable[[RoundReport, int], None],
    *,
    phase: Progress = lambda what, done, total: None,
    begins: Callable[[int], None] = lambda round_: None,
    stops: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda line: None,
) -> Result | None:
    """Train, make the masks small, and write `folder/CATEGORY.safetensors`; an interrupted run resumes.

    Under `accelerate launch` every process calls this. The first one writes; the others return None.

    Args:
        config: The run.
        folder: Where checkpoint, log, configuration, curves and masks go.
        progress: Called after each round with its report and the greatest number of rounds.
        phase: Called before and after the rounds, with a name for the work in progress, how much of it
            is done, and of how much.
        begins: Called with the number of each round when it begins.
        stops: Asked after each round whether to stop there, as after Ctrl-C.
        note: Called with each line about the detector before the first round.

    Raises:
        SafeFluxError: An option, a mask or the folder is wrong, or another run uses the folder, which is found
            before the model loads; the model cannot be loaded, the loss is not finite, the run needs more memory than
            there is, or the disk is full.
        KeyboardInterrupt: `stops` was true after a round.
    """
    processes = Processes()  # before any library asks Accelerate on its own
    given = check_run(config, folder, processes)
    pipe = load_pipeline(config.model, dtype=getattr(torch, config.dtype))
    base = Base.of(pipe.transformer)
    processes.place_(pipe)
    validator = _validator(config, pipe, given, processes)
    if validator and processes.is_first:
        for line in validator.notes:
            note(line)
    shown = phase if processes.is_first else _silent
    with _writing(folder), locked(folder) if processes.is_first else nullcontext():
        eyes = Eyes(pipe, config) if validator is None else None
        drawn = partial(shown, "base model's outputs")
        training = Run(config, pipe, folder, processes, validator, drawn, given, eyes, base)
        if eyes:
            eyes.rest()
        elif validator is None:
            _release(pipe)
        for report in training.rounds(begins, stops):
            if processes.is_first:
                progress(report, training.method.most)
        if training.is_stopped:
            raise KeyboardInterrupt
        masks, tried = _smallest(training, shown)
        seen = _figures(training, masks)
        processes.leave()
        return _write(training, masks, tried, seen) if processes.is_first else None


def check_run(config: TrainConfig, folder: Path, processes: Processes, *, needs_model: bool = True) -> GivenMasks:
    """Find mistakes before the model loads; those that only the loaded model can show follow in `Run`.

    Args:
        config: The run.
        folder: Its folder.
        processes: All processes of the run.
        needs_model: Whether it is an error that a model with a bundled profile is not on this machine.

    Returns:
        The masks that the run is given.

    Raises:
        SafeFluxError: The first thing that is wrong.
    """
    if processes.splits_weights:
        check_splittable(config)
    check_writable(folder)
    if processes.is_first:
        check_unlocked(folder)
    read_checkpoint(folder, config, processes.count)
    given = GivenMasks.read(config)
    if detector_of(config) == "judge":
        judged_targets(config)
        erased_things(config, given.concepts)
    elif spec := detector_of(config):
        open_for(config, spec)
    for path in config.prompts.images:
        read_image(path, config.width, config.height)
    if config.tensorboard:
        board_writer()
    if needs_model or profile_of(config.model) is None:
        pipeline_class(config.model)
    if source := source_of(config.model):
        given.check_sites(source.sites)
        given.check_base(source.fingerprint)
        choose_sites(config, source.sites)
    return given


def check_splittable(config: TrainConfig) -> None:
    """Make sure that the processes can share a transformer: each of its forwards takes all of them.

    Raises:
        ConfigError: Some batches run it more often than others.
    """
    for name, terms in (("erase_terms", config.erase_terms), ("preserve_terms", config.preserve_terms)):
        if terms.takes_things:
            raise ConfigError(
                f"{name}: expected `named` alone where FSDP splits the weights, got {terms.model_dump()}: batches of "
                "the other terms run the model more often, and all processes have to run it at the same time. Take "
                "those terms out, or launch with --multi_gpu, where each GPU holds the whole transformer"
            )


def _validator(config: TrainConfig, pipe: Any, given: GivenMasks, processes: Processes) -> Validator | None:
    spec = detector_of(config)
    if spec is None:
        return None
    if spec == "judge":
        return CommonValidator(JudgeValidator(pipe, Judge(), config, given.concepts), processes)
    return CommonValidator(DetectorValidator(pipe, open_for(config, spec, str(pipe.device)), config), processes)


def _silent(what: str, done: int, total: int) -> None:
    """For all but the first process of a run."""


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Explain what a full disk, or a folder that cannot be written to, means for the run."""
    try:
        yield
    except OSError as error:
        raise TrainError(
            f"{folder}: cannot be written to ({error.strerror or error}). The files in it are whole: make room, and "
            "the same command resumes from the last checkpoint."
        ) from error


def _smallest(training: Run, phase: Progress) -> tuple[torch.Tensor, dict[str, list[Point]]]:
    """The masks of the run, made small if it asks for that, and category -> the masks that were tried for it."""
    config = training.config
    if not config.minimise or training.validator is None or config.erase_terms.takes_things:
        return training.masks, {}
    return _minimise(training, training.masks, phase)


def _release(pipe: Any) -> None:
    """Free the text encoders and the VAE; the references hold everything that training needs of them."""
    for part in ("text_encoder", "text_encoder_2", "vae"):
        if getattr(pipe, part, None) is not None:
            setattr(pipe, part, None)


def _minimise(training: Run, masks: torch.Tensor, phase: Progress) -> tuple[torch.Tensor, dict[str, list[Point]]]:
    """Make the mask of each erased category smaller in turn, beside the others as they stand; all must stay erased."""
    validator, target, curves = training.validator, training.config.target_found, {}
    assert validator is not None
    sets = training.sets(masks)
    looks = (0, 1) if training.config.confirm else (0,)
    gone = [name for name in training.names if found(validator, name, sets, looks) <= target]
    masks = training.vectors.copy_of(masks)
    for k, name in enumerate(training.names):
        phase("making the masks smaller", k, len(training.names))

        def look(row: torch.Tensor, name: str = name) -> tuple[float, float]:
            sets = {**training.sets(masks), name: training.bits.masks_of(row)}
            left = found(validator, name, sets, looks)
            if left <= target:  # else there is no need to look at the others
                every = compose(*sets.values())
                left = max([left, *(validator.found(other, every) for other in gone if other != name)])
            return left, right(validator, [name], sets)

        if name in gone:
            masks[k], curves[name] = minimise(masks[k], training.method.worth(k), look, target)
    return masks, curves


def _figures(training: Run, masks: torch.Tensor) -> dict[str, Any]:
    """Category -> what the last validation says of it; empty where nothing validates."""
    if training.validator is None:
        return {}
    near: dict[str, dict[str, Any]] = {}
    look = training.validator.beside_base
    sets = training.sets(masks)
    validation = validate(training.validator, sets, training.names, lambda name: near.update({name: look(name)}))
    settings = {"first_seed": VALIDATION_SEED, "pictures": training.config.validation_prompts}
    settings |= training.validator.about
    return {
        name: {"validation": {"found": found, "kept": validation.right, **settings, **near[name]}}
        for name, found in zip(training.names, validation.found, strict=True)
    }


def _write(training: Run, masks: torch.Tensor, tried: Mapping[str, Sequence[Point]], seen: Mapping[str, Any]) -> Result:
    """Write the masks with the configuration and the curves."""
    config, folder, sets = training.config, training.folder, training.sets(masks)
    options = config.model_dump(mode="json", by_alias=True)
    write_atomically(folder / CONFIG, yaml.safe_dump(options, sort_keys=False).encode())
    curves = {name: Curve(points, tried.get(name, ())) for name, points in read_rounds(folder).items()}
    if curves:  # there are none for a model that nothing validates
        write_curves(folder, curves, training.bits.count)
    trained = {name: sets[name] for name in training.names}
    sha256 = export(folder, trained, config, training.base, seen)
    return Result(
        paths={name: folder / f"{name}.safetensors" for name in training.names},
        sha256=sha256,
        masked=training.num_off(masks),
        bits=training.bits.count,
        share_masked=share_masked(masks),
        validation=dict(seen),
        reaches_target=training.reaches_target,
        precision=str(training.compute_dtype).removeprefix("torch."),
    )
