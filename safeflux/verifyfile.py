"""Whether checkpoint files are guarded: their masked elements are read and must be zero. No torch."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from safeflux.bakejob import KEY
from safeflux.checkpoint import Checkpoint
from safeflux.copying import Progress
from safeflux.errors import ModelError
from safeflux.plan import plan_for
from safeflux.policy import Policy, load_policy
from safeflux.readback import FileStatus, Rows, base_of, parse_told, read_back
from safeflux.store import Store, StoreLike, open_store
from safeflux.stream import rows_of


def verify_files(
    path: str | os.PathLike[str],
    policy: str | os.PathLike[str] | Policy = "strict",
    *,
    store: StoreLike | Store | None = None,
    base: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> FileStatus:
    """Read every masked element of a policy in a model's files, and say what is off.

    A neuron is off where its rows with their biases are zero, or its column.

    Args:
        path: A folder of diffusers or one file, as for `bake`.
        policy: Name of a bundled policy, path of a policy file, or a `Policy`.
        store: A folder, or several, with mask files besides the bundled ones.
        base: The base model's files; not needed where `bake` wrote the files, which say it.
        progress: Is told how far it is, in tensors.

    Raises:
        ModelError: There is no FLUX model, or nothing says which base it was made from.
        SafeFluxError: Whatever planning refuses.
    """
    effective, found = load_policy(policy), Checkpoint.open(path)
    told = _told(found)
    if told and told.get("form") == "compact":
        raise ModelError(
            f"{found.path}: is compacted, so that what was masked is no longer there to be read. Hold it against the "
            f"base model: safeflux bake SRC {found.path} --compact --check"
        )
    plan = plan_for(effective, found.sites, base_of(told, base, found.path), open_store(store))
    plan.check_enforces()

    def rows(name: str) -> Iterator[Rows]:
        held = found.tensors[name]
        with held.file.path.open("rb", buffering=0) as file:
            for first, cells in rows_of(file, held.tensor):
                yield first, held.tensor.format.nonzero(cells)

    return read_back(plan, found.layout, rows, told, progress)


def _told(found: Checkpoint) -> Mapping[str, Any] | None:
    """What the headers say; they must all say the same."""
    texts = {file.metadata.get(KEY) for file in found.files}
    if len(texts) > 1:
        raise ModelError(f"{found.path}: its files were not baked together; bake the model again")
    return parse_told(texts.pop(), found.path)
