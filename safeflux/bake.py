"""Masks into checkpoint files: a copy of a model that is guarded wherever it is loaded.

Files are edited as a stream: no torch, a few megabytes of memory, about the time of a copy. Only masked bytes and the
header differ from the source. The same source, masks and form give the same bytes.
"""

import filecmp
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safeflux import __version__
from safeflux.bakefolder import Others, other_files
from safeflux.checkpoint import Checkpoint, check_maskable
from safeflux.copying import copy_range
from safeflux.errors import BakeError, ModelError
from safeflux.lock import check_lock
from safeflux.maskbytes import canonical_json
from safeflux.patch import Form, Spot, spots
from safeflux.plan import Plan, plan_for
from safeflux.policy import Policy, load_policy
from safeflux.staging import staged
from safeflux.store import Store, StoreLike, open_store
from safeflux.stream import check_masked, write_masked

KEY = "safeflux"
"""Where a guarded file says what it is, in the metadata of its header: JSON."""
FORMAT = "safeflux-bake/1"
Progress = Callable[[str, int, int], object]
"""Takes what is being done, and the bytes of it that are done and that there are."""


@dataclass(frozen=True)
class Baked:
    """What was written, or found to be as it would be written.

    Attributes:
        path: The file or folder.
        plan: What was asked for.
        num_bytes: Size of all files.
        num_masked_tensors: How many tensors have zeros now that they had not.
        num_changed_bytes: How many bytes of tensors differ from the source's; known after `check_bake`.
        left_out: Weights in the source's folder that nobody asked for, which would be unguarded.
    """

    path: Path
    plan: Plan
    num_bytes: int
    num_masked_tensors: int
    num_changed_bytes: int | None
    left_out: tuple[Path, ...]


def bake(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    policy: str | os.PathLike[str] | Policy = "strict",
    *,
    store: StoreLike | Store | None = None,
    form: Form = "both",
    lock: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Baked:
    """Write a guarded copy of a model: the source stays as it is, and the copy needs nothing of ours to be loaded.

    All is resolved and checked before the first write. The copy takes its name only once all of it is on disk: whatever
    stops it, what was there before is as it was.

    Args:
        source: A FLUX pipeline of diffusers or its transformer (a folder), or one safetensors or GGUF file in the
            layout of diffusers or of Black Forest Labs.
        target: The folder or the file to write.
        policy: Name of a bundled policy, path of a policy file, or a `Policy`.
        store: A folder, or several, with mask files besides the bundled ones.
        form: What of a masked neuron is filled: its rows with their biases, its column, or both. One is enough for it
            to be off; rows of zeros turn some quantisers into NaN, and a neuron that lost both sides cannot be told
            from the rest.
        lock: A lock file (`safeflux policy lock`): policy, base and masks must be exactly those.
        overwrite: Replace a file that is there.
        progress: Is told how far it is, in bytes.

    Raises:
        BakeError: The target is there already, is the source, or cannot be written.
        ModelError: The source is no FLUX model, is damaged, guarded already, or quantised in a way that what is masked
            cannot be set to zero alone.
        ConfigError: The source is a GGUF file, and the package that reads them is not installed.
        SafeFluxError: Whatever planning refuses (`guard` has the list).
    """
    job = _Job.of(source, target, policy, store, form, lock)
    _check_target(job.source, job.target, overwrite)
    told = _Progress(progress, f"baking {job.target.name}", job.num_bytes)
    with staged(job.target, job.num_bytes) as partial:
        for file in job.source.files:
            place = _place(job.source.path, file.path, partial)
            write_masked(file, job.touched, job.metadata, place, told)
        for inside in job.others.copied:
            _copy(job.source.path / inside, _made(partial / inside), told)
    return job.result(None)


def check_bake(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    policy: str | os.PathLike[str] | Policy = "strict",
    *,
    store: StoreLike | Store | None = None,
    form: Form = "both",
    progress: Progress | None = None,
) -> Baked:
    """Make sure that a file or folder is what `bake` would write, byte for byte; arguments as there.

    Raises:
        BakeError: It is not; the message says where it differs first.
        SafeFluxError: Whatever `bake` refuses in the source, the policy or the masks.
    """
    job = _Job.of(source, target, policy, store, form, None)
    told = _Progress(progress, f"checking {job.target.name}", job.num_bytes)
    changed = 0
    try:
        for file in job.source.files:
            place = _place(job.source.path, file.path, job.target)
            changed += check_masked(file, job.touched, job.metadata, place, told)
        for inside in job.others.copied:
            _check_copy(job.source.path / inside, job.target / inside)
    except OSError as error:
        raise BakeError(f"{error.filename}: cannot be read ({error.strerror}); bake the model again") from error
    return job.result(changed)


@dataclass(frozen=True)
class _Job:
    """One source, one target, and what is to be masked."""

    source: Checkpoint
    target: Path
    plan: Plan
    touched: Mapping[str, Sequence[Spot]]
    """By the name of the tensor in its file."""
    metadata: Mapping[str, str]
    others: Others

    @classmethod
    def of(
        cls,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        policy: str | os.PathLike[str] | Policy,
        store: StoreLike | Store | None,
        form: Form,
        lock: str | os.PathLike[str] | None,
    ) -> "_Job":
        """Resolve and check everything; nothing is written."""
        effective = load_policy(policy)
        found = Checkpoint.open(source)
        _check_unguarded(found)
        plan = plan_for(effective, found.sites, found.fingerprint, open_store(store))
        plan.check_enforces()
        if lock is not None:
            check_lock(plan, lock)
        touched = {}
        for name, where in spots(found.sites, plan.masks, found.layout, form).items():
            tensor = found.tensors[name].tensor
            check_maskable(tensor, where)
            touched[tensor.name] = where
        return cls(found, Path(target), plan, touched, _metadata(plan, form), other_files(found))

    @property
    def num_bytes(self) -> int:
        """Of all files, up to the header's few more."""
        return self.source.num_bytes + sum((self.source.path / inside).stat().st_size for inside in self.others.copied)

    def result(self, changed: int | None) -> Baked:
        """What to tell."""
        return Baked(self.target, self.plan, self.num_bytes, len(self.touched), changed, self.others.left_out)


@dataclass
class _Progress:
    """Adds up the bytes that are done."""

    progress: Progress | None
    what: str
    total: int
    done: int = 0

    def __call__(self, num_bytes: int) -> None:
        self.done += num_bytes
        if self.progress:
            self.progress(self.what, self.done, self.total)


def _check_unguarded(source: Checkpoint) -> None:
    for file in source.files:
        if KEY in file.metadata:
            raise ModelError(
                f"{file.path}: is guarded already, so that its base weights cannot be told. Bake from the base model, "
                "with a policy that names all categories."
            )


def _check_target(found: Checkpoint, target: Path, overwrite: bool) -> None:
    source, suffix = found.path, found.files[0].suffix
    if not target.parent.is_dir():
        raise BakeError(f"{target}: the folder {target.parent} is not there; make it first")
    if target.exists() and source.samefile(target):
        raise BakeError(f"{target}: is the source itself; choose another name")
    if source.is_dir() and source.resolve() in target.resolve().parents:
        raise BakeError(f"{target}: lies in the source; choose a place outside of it")
    if source.is_file() and target.suffix != suffix:
        raise BakeError(f"{target}: expected a name that ends in {suffix}, as the source is one such file")
    if target.exists() and not (overwrite and source.is_file() and target.is_file()):
        way_out = "overwrite it (--overwrite), or choose" if source.is_file() and target.is_file() else "choose"
        raise BakeError(f"{target}: is there already; {way_out} another name")


def _metadata(plan: Plan, form: Form) -> dict[str, str]:
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


def _place(root: Path, path: Path, target: Path) -> Path:
    """Where a file of the source belongs in the target."""
    return target if root == path else _made(target / path.relative_to(root))


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _copy(source: Path, target: Path, tell: Callable[[int], object]) -> None:
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as write:
        copy_range(read, write, 0, source.stat().st_size, tell)


def _check_copy(source: Path, target: Path) -> None:
    if not filecmp.cmp(source, target, shallow=False):
        raise BakeError(f"{target}: is not the same as in the source; bake it again")
