"""The text of a new run file: model, packs and detector, and every other option with its value as a comment."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from pydantic import BaseModel
from safeflux.trainer.asked.config import Options, PromptConfig, make_config
from safeflux.trainer.asked.options import options_of

from safeflux.packs.load import load_packs
from safeflux.profiles.load import load_profile

SCHEMA_FILE = "safeflux-train.schema.json"
"""The schema for editors, next to the file."""
_WIDTH = 110
_AT_THE_TOP = ("model", "detector")
_LEFT_OUT = ("neutral", "others", "single", "pair", "slots")
"""Of the prompts: words, which the packs bring."""


def starter(model: str, packs: Sequence[str], detector: str | None) -> str:
    """The text of a file that `--config` reads; uncommented as a whole, it says what it says now.

    Args:
        model: A profile, hub id or folder.
        packs: Bundled names or paths.
        detector: A spec; None for the model's own, or for none yet.

    Raises:
        ConfigError: There is no such model or pack, or a pack is not valid.
    """
    profile = load_profile(model)
    values = make_config(options_of(profile, load_packs(tuple(packs)), detector), "train new")
    spec = f"detector: {_inline(detector)}" if detector else "# detector: zero-shot:FOLDER"
    lines = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        "## A training run: safeflux train --config FILE. Check it first with --dry-run.",
        f"model: {_inline(model)}  # a profile, a hub id, or the folder of a pipeline",
        f"packs: {_inline(list(packs))}  # bundled names, or paths from the current folder; one mask each",
        f"{spec}  # looks at the pictures: judge, onnx:FILE, zero-shot:ID|FOLDER, classifier:ID|FOLDER, opennsfw",
        "",
        "## Options with the values that this model and these packs give them. Remove the `# ` of those to change.",
        *_options(values, Options, _AT_THE_TOP, ""),
        "",
        "# prompts:  # words and templates come from the packs",
        *_options(values.prompts, PromptConfig, _LEFT_OUT, "  "),
    ]
    return "\n".join(lines) + "\n"


def _options(values: BaseModel, kind: type[BaseModel], left_out: Sequence[str], indent: str) -> Iterator[str]:
    """Each option as a comment: what it is, then the value; a group's options below its name."""
    for name, field in kind.model_fields.items():
        if name in left_out:
            continue
        value, key = getattr(values, name), field.alias or name
        for line in textwrap.wrap(" ".join((field.description or "").split()), _WIDTH - len(indent)):
            yield f"## {indent}{line}"
        if isinstance(value, BaseModel):
            yield f"# {indent}{key}:"
            yield from _options(value, type(value), (), indent + "  ")
        else:
            yield f"# {indent}{key}: {_inline(values.model_dump(mode='json')[name])}"


def _inline(value: Any) -> str:
    """A value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
