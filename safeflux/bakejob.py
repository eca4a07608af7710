"""What is to be written for a guarded copy of a model: everything resolved and checked, nothing written."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeflux import __version__
from safeflux.bakefolder import other_files
from safeflux.checkpoint import Checkpoint, check_maskable, home_of
from safeflux.errors import BakeError, ModelError
from safeflux.lock import check_lock
from safeflux.maskbytes import canonical_json
from safeflux.patch import Form, spots
from safeflux.plan import Plan, plan_for
from safeflux.policy import Policy, load_policy
from safeflux.removal import WIDTHS, Kept, keeps, kept_by_site
from safeflux.store import Store, StoreLike, open_store
from safeflux.stream import Change
from safeflux.tensorfile import Stored, WeightFile, resized

KEY = "safeflux"
"""Where a guarded file says what it is, in the metadata of its header: JSON."""
FORMAT = "safeflux-bake/1"


@dataclass(frozen=True)
class Job:
    """One source, and what its copy has to be.

    Attributes:
        source: The model.
        plan: What is asked for.
        changes: What is done to tensors, by their names in their files.
        headers: The header of each file of the source's, in their order.
        copied: Other files that go along, by their paths in the source's folder.
        rewritten: Others that go along with another content.
        left_out: Weights that nobody asked for.
    """

    source: Checkpoint
    plan: Plan
    changes: Mapping[str, Change]
    headers: Sequence[bytes]
    copied: Sequence[Path]
    rewritten: Mapping[Path, bytes]
    left_out: tuple[Path, ...]

    @property
    def num_bytes(self) -> int:
        """Of all that is read, up to headers."""
        return self.source.num_bytes + sum((self.source.path / inside).stat().st_size for inside in self.copied)


def make_job(
    source: str | os.PathLike[str],
    policy: str | os.PathLike[str] | Policy,
    store: StoreLike | Store | None,
    form: Form,
    lock: str | os.PathLike[str] | None,
    *,
    compact: bool,
) -> Job:
    """Resolve and check everything but the target; arguments and errors as for `bake.bake`."""
    effective = load_policy(policy)
    found = Checkpoint.open(source)
    _check_unguarded(found)
    plan = plan_for(effective, found.sites, found.fingerprint, open_store(store))
    plan.check_enforces()
    if lock is not None:
        check_lock(plan, lock)
    if compact:
        _check_compactable(found, form)
    kept = keeps(found.sites, plan.masks, found.layout) if compact else {}
    masked = spots(found.sites, plan.masks, found.layout, form)
    changes = {}
    for name in masked | kept:
        tensor = found.tensors[name].tensor
        check_maskable(tensor, masked.get(name, ()))
        changes[tensor.name] = Change(masked.get(name, ()), kept.get(name, Kept(None, None)))
    told = _metadata(plan, "compact" if compact else form)
    headers = [_header(file, changes, told) for file in found.files]
    others, rewritten = other_files(found), _rewritten(found, plan, kept) if compact else {}
    copied = [inside for inside in others.copied if inside not in rewritten]
    return Job(found, plan, changes, headers, copied, rewritten, others.left_out)


def _check_unguarded(source: Checkpoint) -> None:
    for file in source.files:
        if KEY in file.metadata:
            raise ModelError(
                f"{file.path}: is guarded already, so that its base weights cannot be told. Bake from the base model, "
                "with a policy that names all categories."
            )


def _check_compactable(source: Checkpoint, form: Form) -> None:
    if not source.path.is_dir():
        raise BakeError(
            f"{source.path}: expected a folder of diffusers to compact, got one file, which has no configuration that "
            "could tell how many neurons are left; bake it without --compact"
        )
    if form != "both":
        raise BakeError(f"what is cut out has neither rows nor columns: --compact and --form {form} exclude each other")


def _metadata(plan: Plan, form: str) -> dict[str, str]:
    """What the header of a guarded file says beside the source's own words."""
    stored = [one for name in plan.policy.enforced for one in plan.categories[name].stored]
    told = {
        "format": FORMAT,
        "base": plan.base,
        "form": form,
        "masks": {one.name: one.sha256 for one in stored},
        "policy": {"name": plan.policy.name, "sha256": plan.policy.digest},
        "version": __version__,
    }
    return {KEY: canonical_json(told)}


def _header(file: WeightFile, changes: Mapping[str, Change], metadata: Mapping[str, str]) -> bytes:
    shapes = {name: _shape(file.tensors[name], changes[name].kept) for name in file.tensors if name in changes}
    is_cut = any(shape != file.tensors[name].shape for name, shape in shapes.items())
    return (resized(file, shapes) if is_cut else file).header_with(metadata)


def _shape(tensor: Stored, kept: Kept) -> tuple[int, ...]:
    """What is left of a tensor; a vector has rows alone."""
    return tuple(old if index is None else len(index) for old, index in zip(tensor.shape, kept, strict=False))


def _rewritten(source: Checkpoint, plan: Plan, kept: Mapping[str, Kept]) -> dict[Path, bytes]:
    """The configuration with the widths that feed-forwards have left, and the index of shards with their new size."""
    home = home_of(source.path)
    widths = {name: len(index) for name, index in kept_by_site(source.sites, plan.masks).items()}
    config = _read(home / "config.json") | {WIDTHS: widths}
    # as diffusers writes it
    found = {home / "config.json": json.dumps(config, indent=2, sort_keys=True) + "\n"}
    gone = sum(_num_bytes_gone(source.tensors[name].tensor, each) for name, each in kept.items())
    for index in home.glob("*.safetensors.index.json"):
        content = _read(index)
        sizes = content.get("metadata", {})
        content["metadata"] = sizes | {"total_size": sizes.get("total_size", source.num_bytes) - gone}
        found[index] = json.dumps(content, indent=2, sort_keys=True) + "\n"
    return {path.relative_to(source.path): text.encode() for path, text in found.items()}


def _num_bytes_gone(tensor: Stored, kept: Kept) -> int:
    return tensor.nbytes // math.prod(tensor.shape) * (math.prod(tensor.shape) - math.prod(_shape(tensor, kept)))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected a mapping, got {type(content).__name__}")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); copy the model again") from error
    return content
