"""Whether checkpoint files are guarded: their masked elements are read and must be zero, or be gone. No torch."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safeflux.bakejob import KEY, read_json
from safeflux.checkpoint import Checkpoint, home_of
from safeflux.copying import Progress
from safeflux.errors import ModelError
from safeflux.plan import plan_for
from safeflux.policy import Policy, load_policy
from safeflux.readback import FileStatus, base_of, parse_told, read_back, rows_in
from safeflux.removal import WIDTHS
from safeflux.store import Store, StoreLike, open_store
from safeflux.verifycompact import verify_compact


def verify_files(
    path: str | os.PathLike[str],
    policy: str | os.PathLike[str] | Policy = "strict",
    *,
    store: StoreLike | Store | None = None,
    base: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> FileStatus:
    """Read every masked element of a policy in a model's files, and say what is off.

    A neuron is off where its rows with their biases are zero, or its column. Where neurons were cut out (`bake` with
    `compact=True`, or a model saved under `guard(..., compact=True)`) they are off if what is left is, byte for byte,
    what the policy's masks leave of the base model's tensors, which are read too.

    Args:
        path: A folder of diffusers or one file, or an ONNX model, as for `bake`.
        policy: Name of a bundled policy, path of a policy file, or a `Policy`.
        store: A folder, or several, with mask files besides the bundled ones.
        base: The base model's files; not needed where `bake` wrote the files, which say it, unless neurons are gone.
        progress: Is told how far it is, in tensors.

    Raises:
        ModelError: There is no FLUX model, or nothing says which base it was made from; or neurons are gone, and the
            base is not named, or its tensors have other types or shapes than those that the masks would leave.
        SafeFluxError: Whatever planning refuses.
    """
    if Path(path).suffix == ".onnx":
        from safeflux.onnxverify import verify_onnx  # of an extra

        return verify_onnx(path, policy, store=store, base=base, progress=progress)
    effective, found = load_policy(policy), Checkpoint.open(path)
    told, masks = _told(found), open_store(store)
    if _is_compacted(found, told):
        whole = _whole(found, base)
        plan = plan_for(effective, whole.sites, whole.fingerprint, masks)
        plan.check_enforces()
        return verify_compact(found, whole, plan, told, progress)
    plan = plan_for(effective, found.sites, base_of(told, base, found.path), masks)
    plan.check_enforces()
    return read_back(plan, found.layout, partial(rows_in, found), told, progress)


def _is_compacted(found: Checkpoint, told: Mapping[str, Any] | None) -> bool:
    """Whether neurons are gone, by the widths in its configuration; where it has none, by what the headers say."""
    path = home_of(found.path) / "config.json"
    config = read_json(path) if path.is_file() else {}
    return bool(config.get(WIDTHS, told is not None and told.get("form") == "compact"))


def _whole(found: Checkpoint, base: str | os.PathLike[str] | None) -> Checkpoint:
    if base is None:
        raise ModelError(
            f"{found.path}: is compacted, and what is left does not tell which neurons are gone. Name the base model, "
            f"to hold it against (--base); or see that every byte is right: safeflux bake SRC {found.path} --compact "
            "--check"
        )
    return Checkpoint.open(base)


def _told(found: Checkpoint) -> Mapping[str, Any] | None:
    """What the headers say; they must all say the same."""
    texts = {file.metadata.get(KEY) for file in found.files}
    if len(texts) > 1:
        raise ModelError(f"{found.path}: its files were not baked together; bake the model again")
    return parse_told(texts.pop(), found.path)
