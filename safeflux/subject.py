"""Masks that are to be measured: what they are to erase, where they came from, and that they fit the model."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeflux.errors import MaskMismatchError, PolicyError
from safeflux.fingerprint import same_base
from safeflux.maskfile import decode, read_bytes
from safeflux.masks import MaskSet, compose
from safeflux.modelplan import make_plan
from safeflux.policy import Action, load_policy
from safeflux.store import StoreLike, open_store
from safeflux.weights import find_transformer, fingerprint


@dataclass(frozen=True)
class Subject:
    """One mask set under test.

    Attributes:
        name: The policy's name, or the categories joined by `+`.
        masks: The AND of all of them.
        categories: What the masks were trained to erase, by their files.
        files: Mask file -> sha256 of its bytes.
        policy: Digest of the policy; None for single files.
    """

    name: str
    masks: MaskSet
    categories: tuple[str, ...]
    files: Mapping[str, str]
    policy: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything but the bits."""
        return {
            "name": self.name,
            "categories": list(self.categories),
            "files": dict(self.files),
            "policy": self.policy,
        }


def policy_subject(policy: str | Path, model: Any, store: StoreLike | None = None) -> Subject:
    """What a policy would write into the model: the masks of its enforced categories. Nothing is written.

    Raises:
        PolicyError: The policy is not valid, or enforces nothing.
        SafeFluxError: Whatever planning refuses: masks that are missing, damaged, or for another base model.
    """
    plan = make_plan(load_policy(policy), model, open_store(store))
    stored = [s for c in plan.categories.values() if c.action is Action.ENFORCE for s in c.stored]
    if not stored:
        raise PolicyError(f"policy {plan.policy.name!r} enforces no category, so there is nothing to measure")
    categories = tuple(dict.fromkeys(one.meta.category for one in stored))
    files = {one.path.name: one.sha256 for one in stored}
    return Subject(plan.policy.name, plan.masks, categories, files, plan.policy.digest)


def files_subject(paths: Sequence[str | Path], model: Any) -> Subject:
    """Mask files, composed by AND; what they erase is read from each.

    Raises:
        MaskFileError: A file is damaged, or no mask file.
        MaskMismatchError: A file is for another base model.
    """
    base = fingerprint(find_transformer(model))
    masks, categories, files = [], [], {}
    for path in paths:
        data = read_bytes(path)
        mask, meta = decode(data, str(path))
        if not same_base(meta.fingerprint, base):
            raise MaskMismatchError(
                f"{path}: made for other base weights ({meta.base_model}), not for this model; name the folder of that "
                "model with --model"
            )
        masks.append(mask)
        categories.append(meta.category)
        files[str(path)] = hashlib.sha256(data).hexdigest()
    categories = list(dict.fromkeys(categories))
    return Subject("+".join(categories), compose(*masks), tuple(categories), files)
