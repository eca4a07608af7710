"""From what is asked for on the command line to the configuration of a run. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safeflux.trainer.asked.config import TrainConfig, make_config
from safeflux.trainer.asked.options import embedded_options, options_of
from safeflux.trainer.asked.run_file import load_config

from safeflux.errors import ConfigError
from safeflux.packs.load import load_packs
from safeflux.policy.values import read_value
from safeflux.profiles.load import load_profile
from safeflux.reference import NAME


def plan_run(
    categories: Sequence[str],
    config: Path | None,
    settings: Sequence[str],
    given: dict[str, Any],
    *,
    packs: Sequence[str] = (),
    model: str | None = None,
    detector: str | None = None,
) -> TrainConfig:
    """The configuration from a file, from packs or, for categories of the embedded model, from its vocabulary.

    Args:
        categories: Categories of the embedded model.
        config: A YAML file.
        settings: `key.sub=value` texts that replace single options; values are YAML.
        given: Top-level options that replace those of the file.
        packs: Names or paths of packs, for any model.
        model: A profile, hub id or folder; None for the embedded model, or what the file says.
        detector: A spec; None for the model's own, or what the file says.

    Raises:
        ConfigError: None or several of categories, packs and file; or an option that is not valid.
    """
    if unnamed := [option for option, name in (("--model", model), ("--detector", detector)) if name == ""]:
        raise ConfigError(f"{unnamed[0]}: expected a name, got an empty text; leave the option out for the default")
    ways = {"--category": categories, "--pack": packs, "--config": config}
    if len(asked := [name for name, way in ways.items() if way]) != 1:
        raise ConfigError(
            "expected either categories of the embedded model (--category), packs (--pack) or a configuration file "
            f"(--config), got {' and '.join(asked) or 'none of them'}"
        )
    if categories and model not in (None, NAME):
        raise ConfigError("--category is for the embedded model; for another one name packs with --pack")
    given = given | ({} if detector is None else {"detector": detector})
    if config is not None:
        planned = load_config(config, given | ({} if model is None else {"model": load_profile(model).source}))
    elif packs:
        options = options_of(load_profile(model or NAME), load_packs(tuple(packs)))
        planned = make_config({**options, **given}, ", ".join(packs))
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
                f"--set {setting}: there is no group of options {parent!r}; the groups are "
                + ", ".join(name for name, value in data.items() if isinstance(value, dict))
            )
        data = data[parent]
    if not equals:
        raise ConfigError(f"--set {setting}: expected KEY=VALUE, e.g. saliency.rounds=20")
    data[last] = read_value(value, f"--set {path}")
