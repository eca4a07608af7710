"""Verifies that a model's files are guarded: masked elements are read and must be zero, or be removed. No torch."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from safeflux.baking.companions import other_files
from safeflux.baking.components import own_code, unguarded
from safeflux.baking.readback import FileStatus, read_back
from safeflux.baking.stamp import KEY, Stamp
from safeflux.baking.verify_compact import verify_compact
from safeflux.checkpoints.checkpoint import Checkpoint, home_of
from safeflux.checkpoints.source import Source, open_source
from safeflux.disk.canonical import read_json
from safeflux.disk.copying import Progress
from safeflux.disk.reading import read_regular
from safeflux.errors import ModelError
from safeflux.masks.cuts import WIDTHS
from safeflux.masks.store import Store, StoreLike, open_store
from safeflux.plan.resolve import plan_for
from safeflux.plan.status import State
from safeflux.policy.load import Policy, load_policy

_MAX_SETTINGS = 1 << 24
"""No settings file of a model has so many bytes."""


def verify_files(
    path: str | os.PathLike[str],
    policy: str | os.PathLike[str] | Policy = "strict",
    *,
    store: StoreLike | Store | None = None,
    base: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> FileStatus:
    """Read every masked element of a policy in a model's files, and return which are off.

    A neuron is off if its rows with their biases, or its column, are zero. Where neurons were removed (`bake` with
    `compact=True`, or a model saved under `guard(..., compact=True)`), they are off if the rest is, byte for byte, what
    the policy's masks leave of the base model's tensors, which are read too.

    Args:
        path: A diffusers folder or one file, or an ONNX model, as for `bake`.
        policy: Name of a bundled policy, path of a policy file, or a `Policy`.
        store: A folder, or several, with mask files besides the bundled ones.
        base: The base model's files; not needed for files that `bake` wrote, unless neurons were removed.
        progress: Called with the progress in tensors.

    Raises:
        ModelError: It is not a FLUX model, or its base model is not known; or neurons were removed and `base` is
            missing, or the tensors do not have the types and shapes that the masks would leave.
        SafeFluxError: Planning refused the policy (see `guard`).
    """
    effective, found, masks = load_policy(policy), open_source(path), open_store(store)
    stamp = Stamp.read(found.metadata(KEY), found.path)
    if _is_compacted(found, stamp):
        whole = _whole(found, base)
        plan = plan_for(effective, whole.sites, whole.fingerprint, masks)
        plan.check_enforces()
        compacted = Checkpoint.open(path)
        return _with_others(verify_compact(compacted, whole, plan, stamp, progress), compacted, stamp)
    plan = plan_for(effective, found.sites, _base_of(stamp, base, found.path), masks)
    plan.check_enforces()
    return _with_others(read_back(plan, found.layout, found.rows, stamp, progress), found, stamp)


def _with_others(status: FileStatus, found: Source, stamp: Stamp | None) -> FileStatus:
    """Add faults for other files in the folder: what a loader could pick that draws unguarded, and other settings."""
    files = other_files(found, hidden=True)
    others = [
        f"file {inside}: other weights, which can be loaded from this folder (variant=, use_safetensors=False, "
        "from_single_file, subfolder=) and are not guarded; remove it"
        for inside in files.left_out
    ]
    if found.path.is_dir():
        others += [
            f"index: loads {one.name!r} from {one.elsewhere or one.folder}, which was not verified; remove the entry"
            for one in unguarded(found.path)
        ]
        others += [
            f"index: {name!r} is of a class in {path}, and what that code draws was not verified; remove the entry"
            for name, path in own_code(found.path).items()
        ]
        others += _other_settings(found, stamp)
    if not others:
        return status
    state = State.DEGRADED if status.status.state is State.GUARDED else status.status.state
    faults = (*status.status.faults, *others)
    return replace(status, status=replace(status.status, state=state, faults=faults))


def _other_settings(found: Source, stamp: Stamp | None) -> Iterator[str]:
    """Say which files no longer have the settings that they were baked with."""
    home = home_of(found.path)
    settings = stamp.settings if stamp is not None else None
    for name, sha256 in (settings or {}).items():
        path = Path(os.path.normpath(home / name))
        if not path.is_relative_to(found.path):  # the transformer's folder is verified alone
            continue
        try:
            is_same = hashlib.sha256(read_regular(path, _MAX_SETTINGS)).hexdigest() == sha256
        except OSError:
            is_same = False
        if not is_same:
            inside = path.relative_to(found.path)
            yield f"file {inside}: has other settings than when it was baked, or is gone; bake the model again"


def _base_of(stamp: Stamp | None, base: str | os.PathLike[str] | None, where: Path) -> str:
    """The fingerprint of the base model: of its files if they are given, else from the stamp."""
    if base is not None:
        return open_source(base).fingerprint
    if stamp is None:
        raise ModelError(f"{where}: has no stamp of safeflux with its base model; name the base model (--base)")
    return stamp.base


def _is_compacted(found: Source, stamp: Stamp | None) -> bool:
    """Whether neurons were removed, by the widths in the configuration or, if there is none, by the stamp."""
    path = home_of(found.path) / "config.json"
    config = read_json(path) if path.is_file() else {}
    return bool(config.get(WIDTHS, stamp is not None and stamp.is_compact))


def _whole(found: Source, base: str | os.PathLike[str] | None) -> Checkpoint:
    if not found.is_resizable:
        raise ModelError(
            f"{found.path}: is compacted, and does not show which neurons were removed. Verify the folder that it was "
            "exported from, with its base model: safeflux verify FOLDER --base MODEL"
        )
    if base is None:
        raise ModelError(
            f"{found.path}: is compacted, and does not show which neurons were removed. Name the base model to compare "
            f"with (--base), or check every byte: safeflux bake SRC {found.path} --compact --check"
        )
    return Checkpoint.open(base)
