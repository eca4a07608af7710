"""Verifies files whose masked neurons were removed, by comparison with the base model. No torch.

The widths show how many neurons were removed, but nothing in the files proves which: a header can say anything. With
the base model it is certain: if every tensor of a feed-forward is, byte for byte, what the masks leave of the base
model's, the removed neurons are the masked ones. If one differs, nothing is known about that feed-forward.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from safeflux.baking.readback import FileStatus, read_back
from safeflux.baking.rewrite import Change, is_made
from safeflux.baking.stamp import Stamp
from safeflux.checkpoints.checkpoint import Checkpoint
from safeflux.checkpoints.tensor_file import Rows
from safeflux.disk.copying import CHUNK, Progress
from safeflux.errors import ModelError
from safeflux.masks.cuts import Kept, axes, keeps, kept_by_site
from safeflux.masks.spots import spots
from safeflux.plan.resolve import Plan


def verify_compact(
    found: Checkpoint, base: Checkpoint, plan: Plan, stamp: Stamp | None, progress: Progress | None
) -> FileStatus:
    """Return which masked places of a plan are off in files that were compacted with its masks.

    Args:
        found: The files.
        base: The base model, whose sites and fingerprint the plan is for.
        plan: The requested masks.
        stamp: The stamp in the files' metadata.
        progress: Called with the progress in tensors.

    Raises:
        ModelError: Tensors do not have the names, types or shapes that the masks would leave.
    """
    kept = keeps(plan.sites, plan.masks, base.layout)
    _check_alike(found, base, kept)
    wrong = _wrong(found, base, plan, kept, progress)
    cut = [axes(plan.sites[name], base.layout) for name in kept_by_site(plan.sites, plan.masks)]
    together = [{axis.tensor for axis in each} for each in cut]
    unknown = set().union(*(tensors for tensors in together if tensors & wrong))

    def rows(name: str) -> Rows:
        return _all_alike(base.shapes[name], name in unknown) if name in kept else found.rows(name)

    status = read_back(plan, base.layout, rows, stamp, progress)
    faults = [
        f"tensor {name!r}: is not what these masks leave of the base model's; the removed neurons are unknown"
        for name in sorted(wrong)
    ]
    return replace(status, status=replace(status.status, faults=(*faults, *status.status.faults)))


def _check_alike(found: Checkpoint, base: Checkpoint, kept: Mapping[str, Kept]) -> None:
    """Check that files have the tensors that the masks leave of a base model, by name, type and shape."""
    for name in sorted(base.tensors.keys() | found.tensors.keys()):
        wanted = got = "no such tensor"
        if name in base.tensors:
            whole = base.tensors[name].tensor
            shape = kept[name].shape_of(whole.shape) if name in kept else whole.shape
            wanted = f"{whole.dtype} of shape {shape}"
        if name in found.tensors:
            left = found.tensors[name].tensor
            got = f"{left.dtype} of shape {left.shape}"
        if got != wanted:
            raise ModelError(
                f"{found.path}: tensor {name!r}: expected {wanted}, as these masks leave of {base.path}, got {got}. "
                "Name the policy that it was compacted with, and the base model (--base) in the same type and layout."
            )


def _wrong(
    found: Checkpoint, base: Checkpoint, plan: Plan, kept: Mapping[str, Kept], progress: Progress | None
) -> set[str]:
    """The tensors with removed parts that differ from what is left of the base model's."""
    masked, wrong = spots(plan.sites, plan.masks, base.layout), set()
    for done, (name, stays) in enumerate(kept.items(), 1):
        whole, left = base.tensors[name], found.tensors[name]
        change = Change(masked.get(name, ()), stays)
        if not is_made(left.file.path, left.tensor, whole.file.path, whole.tensor, change):
            wrong.add(name)
        if progress:
            progress("comparing with the base model", done, len(kept))
    return wrong


def _all_alike(shape: tuple[int, ...], is_on: bool) -> Rows:
    """A whole tensor for `read_back`, all on or all off."""
    count, width = shape[0], int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, CHUNK // width)
    for first in range(0, count, step):
        yield first, np.full((min(step, count - first), width), is_on)
