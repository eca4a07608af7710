"""Profiles by name, hub id, folder or file."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from safeflux.errors import ConfigError
from safeflux.packs.load import bundled_packs, load_pack, load_packs
from safeflux.packs.schema import Pack
from safeflux.policy.strict_file import read_strict
from safeflux.policy.validate import suggest
from safeflux.profiles.emoji import emoji_speech
from safeflux.profiles.schema import Profile
from safeflux.reference import NAME


def bundled_profiles() -> list[str]:
    """The names of the profiles that come with safeflux."""
    entries = files("safeflux.profiles").joinpath("bundled").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_profile(model: str | Path) -> Profile:
    """The profile of a model.

    Args:
        model: A bundled name (`flux2-klein-4b`), which stands for a pinned revision; the hub id of a bundled profile,
            with `@REVISION` or for the default branch; a YAML file; or the folder of a pipeline, for which the bundled
            profile of its shape is taken, or else that of its class.

    Raises:
        ConfigError: There is no such profile, the file is not valid, or no bundled profile is for such a pipeline.
    """
    text = str(model)
    if text.endswith((".yaml", ".yml")):
        return read_strict(Path(text), text, Profile)
    if text in bundled_profiles():
        return _bundled(text)
    every = [_bundled(name) for name in bundled_profiles()]
    if profile := _by_id(text, every):
        return profile
    if (Path(text) / "model_index.json").is_file():
        return _of_folder(Path(text), every)
    hint = suggest(text, bundled_profiles())
    raise ConfigError(
        f"model {text!r}: expected a bundled profile, the hub id of one, a profile in a YAML file, or the folder of a "
        f"pipeline{hint}"
    ) from FileNotFoundError(text)


def profile_of(model: str) -> Profile | None:
    """The bundled profile of a model that is named by the profile, or by its hub id; None for any other."""
    every = [_bundled(name) for name in bundled_profiles()]
    return next((one for one in every if model == one.name), None) or _by_id(model, every)


def choose_detectors(named: Sequence[str], profile: Profile | None, *, is_needed: bool = True) -> tuple[str, ...]:
    """The specs of who looks at a model's pictures: those that are named, or else the model's own.

    Args:
        named: Specs.
        profile: The model's, if it has one.
        is_needed: Whether it is an error that there is none.

    Raises:
        ConfigError: A detector is needed, and there is none.
    """
    specs = tuple(dict.fromkeys(named or (profile.detectors if profile else ())))
    if is_needed and not specs:
        what = f"the model {profile.name}" if profile else "this model"
        raise ConfigError(f"{what} has no detector of its own: name one, e.g. --detector zero-shot:FOLDER")
    return specs


def known_packs_of(profile: Profile) -> dict[str, Pack]:
    """Category -> its pack: those that the profile names; of a model without captions of its own, the bundled ones."""
    if profile.speech:
        return load_packs(profile.speech.packs)
    return {name: load_pack(name) for name in bundled_packs()}


def gone_words(profile: Profile, packs: Mapping[str, Pack]) -> frozenset[str]:
    """Every word for what packs erase, held-out ones and a model's other names of the same things among them."""
    words = frozenset[str]().union(*(pack.every_word for pack in packs.values()))
    return profile.speech.all_names(words) if profile.speech else words


def _bundled(name: str) -> Profile:
    entry = files("safeflux.profiles") / "bundled" / f"{name}.yaml"
    profile = read_strict(entry, f"bundled:{name}.yaml", Profile)
    return profile.model_copy(update={"speech": emoji_speech()}) if name == NAME else profile


def _by_id(text: str, every: Sequence[Profile]) -> Profile | None:
    """The profile of `ID` or `ID@REVISION`. An id by itself stands for the hub's default branch, as in diffusers."""
    identity, _, revision = text.partition("@")
    found = next((profile for profile in every if profile.model.lower() == identity.lower()), None)
    return found and found.model_copy(update={"revision": revision or None})


def _of_folder(folder: Path, every: list[Profile]) -> Profile:
    """The bundled profile that fits a folder's transformer, or the first of its pipeline's class."""
    index = _read(folder / "model_index.json")
    pipeline = index.get("_class_name")
    alike = [profile for profile in every if profile.pipeline == pipeline and profile.name != NAME]
    if not alike:
        known = ", ".join(sorted({profile.pipeline for profile in every}))
        raise ConfigError(f"{folder}: expected a pipeline of the class {known}, got {pipeline}; write a profile for it")
    config = _read(folder / "transformer" / "config.json")
    fitting = [one for one in alike if all(config.get(k, v) == v for k, v in one.transformer.items() if k != "class")]
    near = fitting or alike
    exact = [one for one in near if all(index.get(k, v) == v for k, v in one.index.items())]
    return (exact or near)[0].model_copy(update={"model": str(folder), "revision": None, "memory": None})


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise ConfigError(f"{path}: expected JSON of a pipeline's folder ({error}); download the model anew") from error
    return value if isinstance(value, dict) else {}
