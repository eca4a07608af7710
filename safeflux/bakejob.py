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
from safeflux.policy import Policy
from safeflux.removal import WIDTHS, Kept, keeps, kept_by_site
from safeflux.sites import Site
from safeflux.store import Store
from safeflux.stream import Change
from safeflux.tensorfile import Stored, WeightFile, resized

KEY = "safeflux"
"""Where a guarded file says what it is, in the metadata of its header: JSON."""
FORMAT = "safeflux-bake/1"


@dataclass(frozen=True)
class Asked:
    """What a copy is to be, whatever it is made from.

    Attributes:
        policy: What is to be off.
        store: Where its masks are.
        form: What of a masked neuron is filled.
        compact: Whether masked neurons are cut out instead.
        lock: A lock file that policy, base and masks must agree with; None for none.
    """

    policy: Policy
    store: Store
    form: Form
    compact: bool
    lock: str | os.PathLike[str] | None = None

    def plan(self, sites: Mapping[str, Site], base: str) -> Plan:
        """Resolve and check it for a base model, of these sites and this fingerprint.

        Raises:
            SafeFluxError: Whatever planning refuses (`guard` has the list).
        """
        plan = plan_for(self.policy, sites, base, self.store)
        plan.check_enforces()
        if self.lock is not None:
            check_lock(plan, self.lock)
        return plan


@dataclass(frozen=True)
class Job:
    """One source, and what its copy has to be.

    Attributes:
        source: What was named.
        root: The folder that its files lie in, or the one file that it is; the target is the same.
        files: Those with tensors.
        plan: What is asked for.
        changes: What is done to tensors, by their names in their files.
        headers: The header of each of the files, in their order.
        copied: Other files that go along, by their paths in the source's folder.
        rewritten: Others that go along with another content.
        num_bytes_changed: How many bytes of tensors are others in those.
        left_out: Weights that nobody asked for.
    """

    source: Path
    root: Path
    files: Sequence[WeightFile]
    plan: Plan
    changes: Mapping[str, Change]
    headers: Sequence[bytes]
    copied: Sequence[Path]
    rewritten: Mapping[Path, bytes]
    num_bytes_changed: int
    left_out: tuple[Path, ...]

    @property
    def num_bytes(self) -> int:
        """Of all that is read, up to headers."""
        tensors = sum(file.num_bytes for file in self.files)
        others = sum((self.root / inside).stat().st_size for inside in self.copied)
        return tensors + others + sum(map(len, self.rewritten.values()))


def make_job(source: str | os.PathLike[str], asked: Asked) -> Job:
    """Resolve and check everything but the target; errors as for `bake.bake`."""
    found = Checkpoint.open(source)
    _check_unguarded(found)
    plan = asked.plan(found.sites, found.fingerprint)
    if asked.compact:
        _check_compactable(found, asked.form)
    kept = keeps(found.sites, plan.masks, found.layout) if asked.compact else {}
    masked = spots(found.sites, plan.masks, found.layout, asked.form)
    changes = {}
    for name in masked | kept:
        tensor = found.tensors[name].tensor
        check_maskable(tensor, masked.get(name, ()))
        changes[tensor.name] = Change(masked.get(name, ()), kept.get(name, Kept(None, None)))
    told = _metadata(plan, "compact" if asked.compact else asked.form)
    headers = [_header(file, changes, told) for file in found.files]
    others, rewritten = other_files(found), _rewritten(found, plan, kept) if asked.compact else {}
    copied = [inside for inside in others.copied if inside not in rewritten]
    return Job(
        source=found.path,
        root=found.path,
        files=found.files,
        plan=plan,
        changes=changes,
        headers=headers,
        copied=copied,
        rewritten=rewritten,
        num_bytes_changed=0,
        left_out=others.left_out,
    )


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
    shapes = {name: changes[name].kept.shape_of(one.shape) for name, one in file.tensors.items() if name in changes}
    is_cut = any(shape != file.tensors[name].shape for name, shape in shapes.items())
    return (resized(file, shapes) if is_cut else file).header_with(metadata)


def _rewritten(source: Checkpoint, plan: Plan, kept: Mapping[str, Kept]) -> dict[Path, bytes]:
    """The configuration with the widths that feed-forwards have left, and the index of shards with their new size."""
    home = home_of(source.path)
    widths = {name: len(index) for name, index in kept_by_site(source.sites, plan.masks).items()}
    config = read_json(home / "config.json") | {WIDTHS: widths}
    # as diffusers writes it
    found = {home / "config.json": json.dumps(config, indent=2, sort_keys=True) + "\n"}
    gone = sum(_num_bytes_gone(source.tensors[name].tensor, each) for name, each in kept.items())
    for index in home.glob("*.safetensors.index.json"):
        content = read_json(index)
        sizes = content.get("metadata", {})
        content["metadata"] = sizes | {"total_size": sizes.get("total_size", source.num_bytes) - gone}
        found[index] = json.dumps(content, indent=2, sort_keys=True) + "\n"
    return {path.relative_to(source.path): text.encode() for path, text in found.items()}


def _num_bytes_gone(tensor: Stored, kept: Kept) -> int:
    whole = math.prod(tensor.shape)
    return tensor.nbytes // whole * (whole - math.prod(kept.shape_of(tensor.shape)))


def read_json(path: Path) -> dict[str, Any]:
    """Read a mapping.

    Raises:
        ModelError: It cannot be read, or is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected a mapping, got {type(content).__name__}")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); copy the model again") from error
    return content
