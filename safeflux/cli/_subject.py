"""Which masks a command measures, those of a policy or of files, and their check before the model is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeflux.cli._completion import MASK, POLICY
from safeflux.cli._shared import masks as mask_stores

if TYPE_CHECKING:
    from safeflux.evaluation.subject import Subject
    from safeflux.masks.store import Store


def subjects(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options `--policy`, `--mask`, `--store` and `--key`; `what` is done to the masks."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        mask = click.option(
            "--mask",
            "masks",
            type=MASK,
            multiple=True,
            help=f"Mask file, or bundled mask, to {what} instead of a policy. Repeatable: the masks are combined.",
        )
        policy = click.option(
            "--policy", type=POLICY, help="Bundled policy, or path of a YAML file.  [default: strict]"
        )
        return policy(mask_stores(mask(command)))

    return add


@dataclass(frozen=True)
class Chosen:
    """The masks that were asked for.

    Attributes:
        name: The policy's, or the categories of the files joined by `+`.
        check: Checks them against a model's files, before it is loaded.
        of: Reads them for a loaded pipeline.
    """

    name: str
    check: Callable[[str], None]
    of: Callable[[Any], Subject]

    @classmethod
    def read(cls, policy: str | None, masks: Sequence[Path], store: Store) -> Chosen:
        """Read the policy or the files.

        Raises:
            SafeFluxError: The policy is not valid, or a file is damaged.
            click.UsageError: Both are given.
        """
        if policy and masks:
            raise click.UsageError("give either --policy or --mask, not both")
        from safeflux.evaluation.subject import MaskFile, check_early, concepts_of, files_subject, policy_subject
        from safeflux.policy.load import load_policy

        if masks:
            files = [MaskFile.read(path) for path in masks]
            name = "+".join(concepts_of(one.meta for one in files))
            return cls(name, lambda model: check_early(files, model), lambda pipe: files_subject(files, pipe))
        loaded = load_policy(policy or "strict")
        return cls(
            loaded.name,
            lambda model: check_early(loaded, model, store),
            lambda pipe: policy_subject(loaded, pipe, store),
        )


def folder_name(name: str) -> str:
    """A name as that of a folder: names of mask files and policies come from others, so only safe characters stay."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", name)
