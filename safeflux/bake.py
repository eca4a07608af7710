"""Masks into checkpoint files: a copy of a model that is guarded wherever it is loaded.

Files are edited as a stream: no torch, a few megabytes of memory, about the time of a copy. Only masked bytes and the
header differ from the source. The same source, masks and form give the same bytes.
"""

import filecmp
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safeflux.bakejob import Job, make_job
from safeflux.checkpoint import Checkpoint
from safeflux.copying import Progress, copy_range
from safeflux.errors import BakeError
from safeflux.patch import Form
from safeflux.plan import Plan
from safeflux.policy import Policy
from safeflux.staging import staged
from safeflux.store import Store, StoreLike
from safeflux.stream import check_masked, write_masked


@dataclass(frozen=True)
class Baked:
    """What was written, or found to be as it would be written.

    Attributes:
        path: The file or folder.
        plan: What was asked for.
        num_bytes: Size of all files.
        num_masked_tensors: How many tensors have zeros now that they had not.
        num_changed_bytes: How many bytes of tensors differ from the source's, or are gone; known after `check_bake`.
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
    compact: bool = False,
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
        compact: Cut masked neurons of feed-forwards out instead; of a folder of diffusers alone, and
            `compactfile.load_compact` loads the copy.
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
    job, place = make_job(source, policy, store, form, lock, compact=compact), Path(target)
    _check_target(job.source, place, overwrite)
    told = _Progress(progress, f"baking {place.name}", job.num_bytes)
    with staged(place, job.num_bytes) as partial:
        for file, header in zip(job.source.files, job.headers, strict=True):
            write_masked(file, job.changes, header, _made(_place(job.source.path, file.path, partial)), told)
        for inside in job.copied:
            _copy(job.source.path / inside, _made(partial / inside), told)
        for inside, content in job.rewritten.items():
            _made(partial / inside).write_bytes(content)
    return _result(job, place, None)


def check_bake(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    policy: str | os.PathLike[str] | Policy = "strict",
    *,
    store: StoreLike | Store | None = None,
    form: Form = "both",
    compact: bool = False,
    progress: Progress | None = None,
) -> Baked:
    """Make sure that a file or folder is what `bake` would write, byte for byte; arguments as there.

    Raises:
        BakeError: It is not; the message says where it differs first.
        SafeFluxError: Whatever `bake` refuses in the source, the policy or the masks.
    """
    job, place = make_job(source, policy, store, form, None, compact=compact), Path(target)
    told = _Progress(progress, f"checking {place.name}", job.num_bytes)
    changed = 0
    try:
        for file, header in zip(job.source.files, job.headers, strict=True):
            changed += check_masked(file, job.changes, header, _place(job.source.path, file.path, place), told)
        for inside in job.copied:
            _expect(place / inside, filecmp.cmp(job.source.path / inside, place / inside, shallow=False))
        for inside, content in job.rewritten.items():
            _expect(place / inside, (place / inside).read_bytes() == content)
    except OSError as error:
        raise BakeError(f"{error.filename}: cannot be read ({error.strerror}); bake the model again") from error
    return _result(job, place, changed)


def _result(job: Job, target: Path, changed: int | None) -> Baked:
    return Baked(target, job.plan, job.num_bytes, len(job.changes), changed, job.left_out)


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


def _place(root: Path, path: Path, target: Path) -> Path:
    """Where a file of the source belongs in the target."""
    return target if root == path else target / path.relative_to(root)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _copy(source: Path, target: Path, tell: Callable[[int], object]) -> None:
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as write:
        copy_range(read, write, 0, source.stat().st_size, tell)


def _expect(path: Path, is_right: bool) -> None:
    if not is_right:
        raise BakeError(f"{path}: is not what it should be; bake the model again")
