"""Masks to be measured: the concepts that they are to erase, their origin, and whether they fit the model."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeflux.checkpoints.source import Source, open_source
from safeflux.errors import MaskMismatchError, PolicyError, SafeFluxError
from safeflux.families.fingerprint import same_base
from safeflux.masks.encoding import decode
from safeflux.masks.file import read_bytes
from safeflux.masks.mask_set import MaskSet, check_fit, compose
from safeflux.masks.meta import MaskMeta
from safeflux.masks.store import Store, StoreLike, open_store
from safeflux.model.planning import make_plan
from safeflux.model.weights import find_transformer, fingerprint
from safeflux.plan.resolve import plan_for
from safeflux.policy.load import Action, Policy, load_policy
from safeflux.reference.model import model_folder


@dataclass(frozen=True)
class Subject:
    """One mask set under test.

    Attributes:
        name: The policy's name, or the categories joined by `+`.
        masks: The AND of all of them.
        concepts: Category -> the concepts that its masks were trained to erase, by the mask files.
        files: Mask file -> sha256 of its bytes.
        policy: Digest of the policy; None for single files.
    """

    name: str
    masks: MaskSet
    concepts: Mapping[str, tuple[str, ...]]
    files: Mapping[str, str]
    policy: str | None = None

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories that the masks were trained to erase."""
        return tuple(self.concepts)

    def to_json(self) -> dict[str, Any]:
        """Everything but the bits."""
        return {
            "name": self.name,
            "categories": list(self.categories),
            "files": dict(self.files),
            "policy": self.policy,
        }


@dataclass(frozen=True)
class MaskFile:
    """A mask file, read: `sha256` is that of its bytes."""

    path: str
    masks: MaskSet
    meta: MaskMeta
    sha256: str

    @classmethod
    def read(cls, path: str | Path) -> "MaskFile":
        """Read a file; no model is needed.

        Raises:
            MaskFileError: The file is damaged, or no mask file.
        """
        data = read_bytes(path)
        return cls(str(path), *decode(data, str(path)), hashlib.sha256(data).hexdigest())


def concepts_of(metas: Iterable[MaskMeta]) -> dict[str, tuple[str, ...]]:
    """Category -> the concepts that masks of it erase, by their metadata."""
    concepts: dict[str, tuple[str, ...]] = {}
    for meta in metas:
        concepts[meta.category] = tuple(dict.fromkeys((*concepts.get(meta.category, ()), *meta.concepts)))
    return concepts


def source_of(model: str | Path) -> Source | None:
    """The files of a model, to check masks before it is loaded.

    None where only diffusers can read them; the same checks follow on the loaded model.
    """
    try:
        source = open_source(model_folder(model))
        source.fingerprint  # noqa: B018  packed or damaged weights raise here
    except SafeFluxError:
        return None
    return source


def check_early(chosen: Policy | Sequence[MaskFile], model: str | Path, store: StoreLike | Store | None = None) -> None:
    """Refuse masks on a model's files, before it is loaded, as `policy_subject` and `files_subject` do afterwards.

    Raises:
        SafeFluxError: A mask is missing, damaged, for another base model, or does not fit.
    """
    source = source_of(model)
    if source is None:
        return
    if isinstance(chosen, Policy):
        plan_for(chosen, source.sites, source.fingerprint, open_store(store))
    else:
        _check_base(chosen, source.fingerprint)
        check_fit(compose(*(one.masks for one in chosen)), source.sites)


def policy_subject(policy: str | Path | Policy, model: Any, store: StoreLike | Store | None = None) -> Subject:
    """The masks that a policy would write into the model: those of its enforced categories. Nothing is written.

    Raises:
        PolicyError: The policy is not valid, or enforces nothing.
        SafeFluxError: A mask is missing, damaged, or for another base model.
    """
    plan = make_plan(load_policy(policy), model, open_store(store))
    stored = [s for c in plan.categories.values() if c.action is Action.ENFORCE for s in c.stored]
    if not stored:
        raise PolicyError(f"policy {plan.policy.name!r} enforces no category, so there is nothing to measure")
    files = {one.path.name: one.sha256 for one in stored}
    return Subject(plan.policy.name, plan.masks, concepts_of(one.meta for one in stored), files, plan.policy.digest)


def files_subject(files: Sequence[str | Path | MaskFile], model: Any) -> Subject:
    """Mask files, composed by AND; their concepts are read from each.

    Raises:
        MaskFileError: A file is damaged, or no mask file.
        MaskMismatchError: A file is for another base model.
    """
    base = fingerprint(find_transformer(model))
    read = [one if isinstance(one, MaskFile) else MaskFile.read(one) for one in files]
    _check_base(read, base)
    concepts = concepts_of(one.meta for one in read)
    return Subject(
        "+".join(concepts), compose(*(one.masks for one in read)), concepts, {one.path: one.sha256 for one in read}
    )


def _check_base(files: Sequence[MaskFile], base: str) -> None:
    for one in files:
        if not same_base(one.meta.fingerprint, base):
            raise MaskMismatchError(
                f"{one.path}: made for other base weights ({one.meta.base_model}), not for this model; name the folder "
                "of that model with --model"
            )
