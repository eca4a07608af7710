"""Comparison of a guarded model with its base model's files: every element of every weight, one tensor at a time.

The secret sample (`watch.sample`) needs no files, and finds a change of a small block only as often as its share
allows. Here nothing depends on chance, and what was changed before the guard is found too.
"""

import os

import torch

from safeflux.checkpoints.numbers import Numbers
from safeflux.errors import ModelError
from safeflux.families.fingerprint import same_base
from safeflux.model.forward_values import UnreadableError, Values
from safeflux.model.index_sets import Elements
from safeflux.model.record import Record
from safeflux.model.watch.alike import are_alike
from safeflux.model.watch.sample import Difference
from safeflux.policy.load import Adapters, Policy


def open_base(path: str | os.PathLike[str], policy: Policy, record: Record) -> Numbers:
    """Open the files that a guarded model is to be compared with.

    Args:
        path: The base model's: a diffusers folder or one file.
        policy: The policy that is verified.
        record: What is in force on the model.

    Raises:
        ModelError: They are not those of the guarded model's base, or cannot be compared with.
    """
    if policy.adapters is Adapters.ALLOW:
        raise ModelError(
            f"policy {policy.name!r} lets any adapter in (`adapters: allow`), so that other weights than the base "
            "model's break nothing; compare under `adapters: deny` or `allowlist`"
        )
    if record.is_final:
        raise ModelError(
            "neurons were cut out of this model (compact), which the base model's files still have. Save it, and "
            "compare files: safeflux verify FOLDER --base MODEL"
        )
    base = Numbers.open(path)
    for plan in record.plans[:1]:
        if not same_base(plan.base, found := base.checkpoint.fingerprint):
            raise ModelError(
                f"{path}: is another model than the guarded one's base: its fingerprint is {found}, expected "
                f"{plan.base}. Name the files that the model was loaded from"
            )
    return base


@torch.no_grad()
def compare_whole(base: Numbers, record: Record, now: Values, *, rounded: bool) -> Difference:
    """Read every weight, and say which are not the base model's; masked elements are left out.

    Args:
        base: The base model's files.
        record: What is in force, whose masks were written.
        now: Where the model's weights are.
        rounded: Let weights differ by what adding something to them and taking it away again rounds.
    """
    masked: dict[str, list[Elements]] = {}
    for entry in record.entries:
        for name, elements, _ in entry.undo.places():
            masked.setdefault(name, []).append(elements)
    changed, lost = [], []
    for name, piece in base.pieces.items():
        try:
            tensor = now.read(name, torch.Size(piece.shape))
        except UnreadableError as error:
            lost.append(f"{name} ({error})")
            continue
        if not _is_alike(base, name, tensor, masked.get(name, ()), now.packing(name), rounded=rounded):
            changed.append(name)
    return Difference(tuple(changed), tuple(lost))


def _is_alike(
    base: Numbers,
    name: str,
    tensor: torch.Tensor,
    masked: list[Elements] | tuple[()],
    packing: set[torch.dtype] | None,
    *,
    rounded: bool,
) -> bool:
    kept = torch.ones(tensor.shape, dtype=torch.uint8)
    for elements in masked:
        elements.fill_(kept)
    count = tensor.shape[0] if tensor.dim() else 1
    rows, kept_rows = tensor.reshape(count, -1), kept.reshape(count, -1).bool()
    for first, numbers in base.rows(name):
        here = slice(first, first + len(numbers))
        places = kept_rows[here].flatten().nonzero().flatten()
        was = torch.from_numpy(numbers).flatten()[places]
        is_ = rows[here].to("cpu", torch.float64).flatten()[places]
        if not torch.equal(was, is_) and not are_alike(was, is_, rows[here], places, packing, rounded=rounded):
            return False
    return True
