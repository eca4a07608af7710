"""One whole training run: load the model, run the rounds, measure, write the mask file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safeflux.trainer.config import TrainConfig, load_config, make_config
from safeflux.trainer.evaluate import EVALUATION_SEED, evaluate, validator
from safeflux.trainer.export import export
from safeflux.trainer.loop import RoundReport, Run
from safeflux.trainer.prompts import embedded_prompts

from safeflux.apply import apply_masks_
from safeflux.atomic import write_atomically
from safeflux.errors import ConfigError
from safeflux.masks import MaskSet
from safeflux.reference.judge import Judge
from safeflux.reference.model import MODEL, load_pipeline

EMBEDDED = "emoji-flux"
MASKS = "masks.safetensors"
CONFIG = "config.yaml"


@dataclass(frozen=True)
class Result:
    """What a session made."""

    path: Path
    """The mask file."""
    sha256: str
    masked: int
    share_masked: float
    """Of the bits that could be masked, those that are off."""
    evaluation: dict[str, Any]
    reaches_target: bool
    """Whether validation found the concept seldom enough; False too for a model that nothing can validate."""


def plan_run(category: str | None, config: Path | None, settings: Sequence[str], given: dict[str, Any]) -> TrainConfig:
    """The configuration from a file or, for a category of the embedded model, from its vocabulary.

    Args:
        category: A category of the embedded model; not with `config`.
        config: A YAML file.
        settings: `key.sub=value` texts that replace single options; values are YAML.
        given: Top-level options that replace those of the file.

    Raises:
        ConfigError: Neither or both of the first two, or an option that is not valid.
    """
    if (category is None) == (config is None):
        raise ConfigError("expected either a category of the embedded model or a configuration file, not both or none")
    if config is not None:
        planned = load_config(config, given)
    else:
        assert category is not None
        planned = make_config({"category": category, "prompts": embedded_prompts(category), **given}, category)
    data = planned.model_dump()
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
                f"--set {setting}: there is no group of options {parent!r}; the groups are prompts, saliency and gates"
            )
        data = data[parent]
    if not equals:
        raise ConfigError(f"--set {setting}: expected KEY=VALUE, e.g. saliency.rounds=20")
    data[last] = yaml.safe_load(value)


def run(config: TrainConfig, folder: Path, progress: Callable[[RoundReport, int], None]) -> Result:
    """Train, measure, and write `folder/masks.safetensors`; an interrupted run of the same folder goes on.

    Args:
        config: What to train.
        folder: Where checkpoint, log, configuration and result go.
        progress: Called after each round with its report and the number of rounds at most.

    Raises:
        ConfigError: The folder holds a run of another configuration.
        ModelError: The model cannot be loaded as a FLUX pipeline.
    """
    pipe = load_pipeline(MODEL if config.model == EMBEDDED else config.model)
    judge = Judge() if config.model == EMBEDDED else None
    training = Run(config, pipe, folder, validator(pipe, judge, config) if judge else None)
    folder.mkdir(parents=True, exist_ok=True)
    for report in training.rounds():
        progress(report, training.method.most)
    write_atomically(folder / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
    evaluation = measure(pipe, judge, config, training.result) if judge and config.evaluation_each else {}
    path = folder / MASKS
    sha256 = export(path, training.result, config, pipe, evaluation)
    masked = training.result.count.masked
    return Result(path, sha256, masked, masked / training.bits.count, evaluation, training.reaches_target)


def measure(pipe: Any, judge: Judge, config: TrainConfig, masks: MaskSet) -> dict[str, Any]:
    """The figures that go into the mask file: without and with the masks, on paired noises."""
    each = config.evaluation_each
    base = evaluate(pipe, judge, config.category, each=each, kept_each=-(-each // 4))
    with apply_masks_(pipe.transformer, masks):
        masked = evaluate(pipe, judge, config.category, each=each, kept_each=-(-each // 4))
    return {"seed": EVALUATION_SEED, "base": base.to_json(), "masked": masked.to_json()}
