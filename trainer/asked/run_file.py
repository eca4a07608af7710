"""The file of a run, `--config FILE`: packs or categories in words, and options that differ from the model's own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from safeflux.trainer.asked.config import (
    CategoryConfig,
    Options,
    PromptConfig,
    TrainConfig,
    Words,
    conflicts,
    make_config,
)
from safeflux.trainer.asked.options import options_of

from safeflux.packs.load import load_packs
from safeflux.policy.strict_file import json_schema, read_strict
from safeflux.policy.yaml_reader import Loc
from safeflux.profiles.load import load_profile, profile_of


class PromptChanges(PromptConfig):
    """Templates and the words that fill them; beside packs, only what differs from theirs."""

    neutral: Words = ()
    """Things to preserve, used in training. The evaluation uses others."""

    @model_validator(mode="after")
    def _complete(self) -> "PromptChanges":
        return self


class RunFile(Options):
    """The file of a training run: packs, or categories and prompts; options that are left out are the model's own."""

    packs: Words = ()
    """Bundled names (`weapons`) or paths of YAML files, from the current folder; one mask is made from each."""
    categories: dict[str, CategoryConfig] = Field({})
    """In place of packs: policy category -> the concepts that its mask erases."""
    prompts: PromptChanges = PromptChanges()
    """Templates and the words that fill them. Without packs `neutral` is needed."""

    def faults(self) -> Iterator[tuple[Loc, str]]:
        """What no single key shows: the place and the fault."""
        if self.packs and self.categories:
            yield ("packs",), "expected either packs or categories, got both"
        elif not self.packs and not self.prompts.neutral:
            where: Loc = ("prompts",) if self.categories else ()
            need = "prompts.neutral" if self.categories else "packs, or categories and prompts"
            yield where, f"expected {need}; `safeflux train new` writes a file to start from"
        elif not self.packs:
            yield from conflicts(self.categories, self.prompts)

    def given(self) -> dict[str, Any]:
        """The options that the file sets, groups with those of their keys that it sets."""
        return self.model_dump(by_alias=True, exclude_unset=True, exclude={"packs"})


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Read a YAML file of a run; `overrides` replace top-level options of it.

    Raises:
        ConfigError: The file cannot be read or is not valid: each problem with file, line, column and an excerpt; or
            a pack or a model that it names is not there.
    """
    file = read_strict(Path(path), str(path), RunFile, RunFile.faults)
    given = {key: value for key, value in file.given().items() if key != "model"} | (overrides or {})
    if not file.packs:
        profile = profile_of(file.model)
        return make_config({"model": profile.source if profile else file.model, **given}, str(path))
    options = options_of(load_profile(given.pop("model", file.model)), load_packs(file.packs))
    return make_config(
        {**options, **{key: _merged(options.get(key), value) for key, value in given.items()}}, str(path)
    )


def run_schema() -> dict[str, Any]:
    """The JSON Schema of the file of a run, draft-07, for editors."""
    return json_schema(RunFile, "safeflux train")


def _merged(known: Any, given: Any) -> Any:
    """A group of options with some of them replaced; anything else is replaced whole."""
    if isinstance(known, PromptConfig):
        known = known.model_dump()
    return {**known, **given} if isinstance(known, dict) and isinstance(given, dict) else given
