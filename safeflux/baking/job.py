"""The plan of a guarded copy of a model: everything resolved and checked, nothing written."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from safeflux.baking.companions import check_whole, other_files, settings_files
from safeflux.baking.components import made_local
from safeflux.baking.patch import Patch
from safeflux.baking.rewrite import Change
from safeflux.baking.stamp import KEY, Stamp
from safeflux.checkpoints.checkpoint import INDEX, check_maskable, home_of
from safeflux.checkpoints.source import Source, open_source
from safeflux.checkpoints.tensor_file import Stored, WeightFile
from safeflux.disk.canonical import read_json
from safeflux.disk.reading import FileState, state_of, states_of
from safeflux.errors import BakeError, ModelError
from safeflux.families.sites import Sites
from safeflux.masks.cuts import WHOLE, WIDTHS, Kept, keeps, kept_by_site
from safeflux.masks.spots import Form, spots
from safeflux.masks.store import Store
from safeflux.plan.lock import check_lock
from safeflux.plan.resolve import Plan, plan_for
from safeflux.policy.load import Policy


@dataclass(frozen=True)
class Asked:
    """The options of a copy, whatever its source.

    Attributes:
        policy: The policy to put in force.
        store: Where its masks are.
        form: The sides of a masked neuron to fill.
        compact: Whether masked neurons are removed instead.
        lock: A lock file that policy, base and masks must agree with; None for none.
    """

    policy: Policy
    store: Store
    form: Form
    compact: bool
    lock: str | os.PathLike[str] | None = None

    def plan(self, sites: Sites, base: str) -> Plan:
        """Resolve and check the policy for a base model with these sites and this fingerprint.

        Raises:
            SafeFluxError: Planning refused it (see `guard`).
        """
        plan = plan_for(self.policy, sites, base, self.store)
        plan.check_enforces()
        if self.lock is not None:
            check_lock(plan, self.lock)
        return plan


@dataclass(frozen=True)
class Job:
    """One source, and what its copy must be.

    Attributes:
        source: The path as given.
        root: The folder of its files, or its only file; the target has the same form.
        files: The files with tensors.
        plan: The plan to write.
        changes: The changes of tensors, by their names in their files.
        headers: The new header of each file, in the same order.
        copied: Other files to copy, by relative path.
        rewritten: Other files with new content.
        num_bytes_changed: Number of tensor bytes that change in those.
        left_out: Other weights, which are not copied.
        links: Links in the source that point outside it, and their targets.
        states: The state of every file that is read, from before it was read.
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
    links: Mapping[Path, Path]
    states: Mapping[Path, FileState]

    def check_unchanged(self) -> None:
        """Check that the source was not changed since it was read.

        Raises:
            BakeError: A file was edited, replaced, added or removed since.
        """
        try:
            now = states_of(self.source) | {path: state_of(path) for path in self.states}
        except (OSError, ModelError) as error:
            raise BakeError(f"{self.source}: changed while it was read ({error}); bake it again") from error
        if changed := sorted(
            path for path in now.keys() | self.states.keys() if now.get(path) != self.states.get(path)
        ):
            raise BakeError(f"{changed[0]}: changed while it was read; bake it again when nothing writes to it")

    @property
    def num_bytes(self) -> int:
        """Size of everything that is read, headers aside."""
        tensors = sum(file.num_bytes for file in self.files)
        others = sum((self.root / inside).stat().st_size for inside in self.copied)
        return tensors + others + sum(map(len, self.rewritten.values()))


def make_job(source: str | os.PathLike[str], asked: Asked) -> Job:
    """Resolve and check everything except the target; errors as for `bake.bake`."""
    found, states = _opened(Path(source))
    if found.metadata(KEY) is not None:
        raise ModelError(
            f"{found.path}: is already guarded, so its base weights are not known. Bake from the base model, with a "
            "policy that has all categories."
        )
    if asked.compact:
        _check_compactable(found, asked.form)
    plan = asked.plan(found.sites, found.fingerprint)
    kept = keeps(found.sites, plan.masks, found.layout) if asked.compact else {}
    masked = spots(found.sites, plan.masks, found.layout, asked.form)
    tensors = {name: found.stored(name) for name in masked | kept}
    changes = {}
    for name, tensor in tensors.items():
        where = masked.get(name, ())
        check_maskable(tensor, where)
        changes[tensor.name] = Change(found.lying(name, where), kept.get(name, WHOLE))
    shapes = {tensors[name].name: each.shape_of(tensors[name].shape) for name, each in kept.items()}
    inline, num_bytes_changed = _masked_inline(found.inline, tensors.values(), changes)
    others = other_files(found)
    check_whole(found.path, others)
    settings = _as_bytes(made_local(found.path))
    if asked.compact:
        settings |= _as_bytes(_resized(found, plan, kept))
    stamp = Stamp.of([plan], "compact" if asked.compact else asked.form, _digests(found, others.copied, settings))
    rewritten = found.rewritten(inline, stamp.metadata) | settings
    return Job(
        source=found.path,
        root=found.root,
        files=found.files,
        plan=plan,
        changes=changes,
        headers=found.headers(shapes, stamp.metadata),
        copied=[inside for inside in others.copied if inside not in rewritten],
        rewritten=rewritten,
        num_bytes_changed=num_bytes_changed,
        left_out=others.left_out,
        links=others.links,
        states=states,
    )


def _opened(path: Path) -> tuple[Source, dict[Path, FileState]]:
    """Open a model, and return the states of its files from before the first of them was read."""
    try:
        states = states_of(path) if path.exists() else {}
        found = open_source(path)
        return found, {file.path: state_of(file.path) for file in found.files} | states
    except OSError as error:
        raise ModelError(f"{error.filename}: cannot be read ({error.strerror}); copy the model again") from error


def _digests(source: Source, copied: Iterable[Path], rewritten: Mapping[Path, bytes]) -> dict[str, str] | None:
    """The sha256 that settings files of a folder's copy will have; None for a file."""
    if not source.path.is_dir():
        return None
    try:
        return {
            name: hashlib.sha256(rewritten.get(inside) or (source.path / inside).read_bytes()).hexdigest()
            for name, inside in settings_files(source, copied).items()
        }
    except OSError as error:
        raise ModelError(f"{error.filename}: cannot be read ({error.strerror}); copy the model again") from error


def _masked_inline(
    inline: Mapping[str, bytes], tensors: Iterable[Stored], changes: Mapping[str, Change]
) -> tuple[dict[str, bytes], int]:
    """Mask the tensors inside a file that is rewritten as a whole; also return how many of their bytes changed."""
    found, num_changed = {}, 0
    for tensor in tensors:
        if tensor.name in inline:
            before = np.frombuffer(inline[tensor.name], dtype=np.uint8)
            after = before.copy()
            cells = after.view(f"<u{tensor.format.cell}").reshape(tensor.num_rows, -1)
            Patch.of(changes[tensor.name].spots, tensor.num_columns, tensor.format).fill_(cells, 0)
            found[tensor.name] = after.tobytes()
            num_changed += int(np.count_nonzero(before != after))
    return found, num_changed


def _check_compactable(source: Source, form: Form) -> None:
    if not source.is_resizable:
        raise BakeError(
            f"{source.path}: expected a diffusers folder to compact, got an ONNX model, whose graph fixes the widths; "
            "bake it without --compact"
        )
    if not source.path.is_dir():
        raise BakeError(
            f"{source.path}: expected a diffusers folder to compact, got one file, which has no configuration to "
            "record the widths in; bake it without --compact"
        )
    if form != "both":
        raise BakeError(f"--compact removes neurons, so --form {form} has no meaning with it; leave one of them out")


def _as_bytes(contents: Mapping[Path, Any]) -> dict[Path, bytes]:
    """JSON files by their paths, as diffusers writes them."""
    return {path: (json.dumps(each, indent=2, sort_keys=True) + "\n").encode() for path, each in contents.items()}


def _resized(source: Source, plan: Plan, kept: Mapping[str, Kept]) -> dict[Path, Any]:
    """The configuration with the new widths of feed-forwards, and the index of shards with their new size."""
    home = home_of(source.path)
    widths = {name: len(index) for name, index in kept_by_site(source.sites, plan.masks).items()}
    config = read_json(home / "config.json") | {WIDTHS: widths}
    found = {home / "config.json": config}
    gone = sum(_num_bytes_gone(source.stored(name), each) for name, each in kept.items())
    if (index := home / INDEX).is_file():
        content = read_json(index)
        sizes = content.get("metadata", {})
        content["metadata"] = sizes | {
            "total_size": sizes.get("total_size", sum(file.num_bytes for file in source.files)) - gone
        }
        found[index] = content
    return {path.relative_to(source.path): content for path, content in found.items()}


def _num_bytes_gone(tensor: Stored, kept: Kept) -> int:
    whole = math.prod(tensor.shape)
    return tensor.nbytes // whole * (whole - math.prod(kept.shape_of(tensor.shape)))
