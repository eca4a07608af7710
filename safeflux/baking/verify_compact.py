"""Whether files whose masked neurons were cut out are guarded: what is left is compared with the base model. No torch.

Widths tell how many neurons are gone, and nothing in such files proves which: a header can say anything. With the base
model at hand it is certain. Where every tensor of a feed-forward is, byte for byte, what the masks leave of the base
model's, the neurons that are not there are the masked ones. Where one is not, nothing of the feed-forward is known to
be off.
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
    """Say what of a plan is off in files that were compacted by its masks.

    Args:
        found: The files.
        base: Those of the base model, whose sites and fingerprint the plan is for.
        plan: What is asked for.
        stamp: What the files say of themselves.
        progress: Called with how far it is, in tensors.

    Raises:
        ModelError: Tensors have other names, types or shapes than the masks leave them.
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
        f"tensor {name!r}: is not what these masks leave of the base model's; which neurons are gone is not known"
        for name in sorted(wrong)
    ]
    return replace(status, status=replace(status.status, faults=(*faults, *status.status.faults)))


def _check_alike(found: Checkpoint, base: Checkpoint, kept: Mapping[str, Kept]) -> None:
    """Make sure that files have the tensors that the masks leave of a base model, up to their bytes."""
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
                f"{found.path}: tensor {name!r}: expected {wanted}, as these masks leave it of {base.path}, got {got}. "
                "Name the policy that it was compacted by, and the base model (--base) in the same type and layout."
            )


def _wrong(
    found: Checkpoint, base: Checkpoint, plan: Plan, kept: Mapping[str, Kept], progress: Progress | None
) -> set[str]:
    """Those of the tensors that lost something which are not what is left of the base model's."""
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
    """A whole tensor of the base model as `read_back` asks for it, on or off as one."""
    count, width = shape[0], int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, CHUNK // width)
    for first in range(0, count, step):
        yield first, np.full((min(step, count - first), width), is_on)
