"""Writes masks into checkpoint files: a copy of a model that is guarded wherever it is loaded.

Files are edited as a stream: no torch, a few megabytes of memory, about the time of a copy. Only masked bytes and the
header (for ONNX, the metadata) differ from the source. The same source, masks and form give the same bytes.
"""

import filecmp
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safeflux.baking.job import Asked, Job, make_job
from safeflux.baking.rewrite import check_masked, write_masked
from safeflux.checkpoints.formats import OPENERS
from safeflux.disk.copying import Progress, copy_range
from safeflux.disk.reading import look_through
from safeflux.disk.staging import staged
from safeflux.errors import BakeError
from safeflux.masks.spots import Form
from safeflux.masks.store import Store, StoreLike, open_store
from safeflux.plan.resolve import Plan
from safeflux.policy.load import Policy, load_policy


@dataclass(frozen=True)
class Baked:
    """The result of `bake` or `check_bake`.

    Attributes:
        path: The file or folder.
        plan: The plan that was written.
        num_bytes: Size of all files.
        num_masked_tensors: Number of tensors with masked elements.
        num_changed_bytes: Number of tensor bytes that differ from the source or were removed; only from `check_bake`.
        left_out: Other weights in the source's folder, which would be unguarded and were not copied.
        links: Links in the source's folder that point outside it, and their targets, which were copied.
    """

    path: Path
    plan: Plan
    num_bytes: int
    num_masked_tensors: int
    num_changed_bytes: int | None
    left_out: tuple[Path, ...]
    links: Mapping[Path, Path]


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
    """Write a guarded copy of a model: the source is unchanged, and the copy loads without safeflux.

    Everything is resolved and checked before the first write. The copy gets its name only once all of it is on disk: on
    any failure, existing files are unchanged.

    Args:
        source: A FLUX pipeline of diffusers or its transformer (a folder); or one safetensors or GGUF file in the
            layout of diffusers or of Black Forest Labs; or an ONNX model, `*.onnx`, whose initializers have diffusers'
            names, with its data inside or in files next to it.
        target: The folder or the file to write; for an ONNX model, the folder.
        policy: Name of a bundled policy, path of a policy file, or a `Policy`.
        store: A folder, or several, with mask files besides the bundled ones.
        form: The sides of a masked neuron to fill: its rows with their biases, its column, or both. One is enough to
            switch it off. Some quantisers turn a row of zeros into NaN. With both, nothing is left to reconstruct the
            neuron from.
        compact: Remove masked neurons of feed-forwards instead; only for a diffusers folder, and the copy is loaded
            with `safeflux.load_compact`.
        lock: A lock file (`safeflux policy lock`): policy, base and masks must match it exactly.
        overwrite: Replace an existing file.
        progress: Called with the progress in bytes.

    Raises:
        BakeError: The target already exists, is the source, or cannot be written.
        ModelError: The source is not a FLUX model, is damaged or already guarded, or is quantised in a way that masked
            elements cannot be set to zero alone.
        ConfigError: The source is a GGUF file or an ONNX model, and the package that reads it is not installed.
        SafeFluxError: Planning refused it (see `guard`).
    """
    asked = Asked(load_policy(policy), open_store(store), form, compact, lock)
    job, place = make_job(source, asked), Path(target)
    _check_target(job, place, overwrite)
    report = _Progress(progress, f"baking {place.name}", job.num_bytes)
    with staged(place, job.num_bytes, overwrite=overwrite) as partial:
        try:
            _write(job, partial, report)
        except (OSError, BakeError):
            job.check_unchanged()  # the better message: a file that is gone or shorter was edited
            raise
        job.check_unchanged()
    return _result(job, place, None)


def _write(job: Job, partial: Path, report: Callable[[int], object]) -> None:
    for file, header in zip(job.files, job.headers, strict=True):
        write_masked(file, job.changes, header, _made(_place(job.root, file.path, partial)), report)
    for inside in job.copied:
        _copy(job.root / inside, _made(partial / inside), report)
    for inside, content in job.rewritten.items():
        _made(partial / inside).write_bytes(content)
        report(len(content))
    _narrow(job.root, partial)


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
    """Check that a file or folder is what `bake` would write, byte for byte; it takes the same arguments.

    Raises:
        BakeError: It is not, or a folder also holds other files; the message names the first difference.
        SafeFluxError: `bake` would refuse the source, the policy or the masks.
    """
    asked = Asked(load_policy(policy), open_store(store), form, compact)
    job, place = make_job(source, asked), Path(target)
    report = _Progress(progress, f"checking {place.name}", job.num_bytes)
    changed = job.num_bytes_changed
    try:
        for file, header in zip(job.files, job.headers, strict=True):
            changed += check_masked(file, job.changes, header, _place(job.root, file.path, place), report)
        for inside in job.copied:
            _expect(place / inside, _is_same(job.root / inside, place / inside))
        for inside, content in job.rewritten.items():
            _expect(place / inside, (place / inside).read_bytes() == content)
    except OSError as error:
        raise BakeError(f"{error.filename}: cannot be read ({error.strerror}); bake the model again") from error
    _check_no_others(job, place)
    return _result(job, place, changed)


def _files(target: Path) -> list[Path]:
    if not target.is_dir():
        return [target]
    return [target / inside for inside in look_through(target, hidden=True).files]


def _narrow(source: Path, made: Path) -> None:
    """Limit the permissions of new files and folders to those of their sources."""
    for path in (made, *made.rglob("*")):
        like = source / path.relative_to(made)
        allowed = like.stat().st_mode | (0o700 if path.is_dir() else 0)  # a folder without x cannot be renamed
        path.chmod(path.stat().st_mode & allowed & 0o777)


def _check_no_others(job: Job, target: Path) -> None:
    """Check that a folder holds nothing else: other weights in it could be loaded, unguarded."""
    made = {_place(job.root, file.path, target) for file in job.files}
    made.update(target / inside for inside in (*job.copied, *job.rewritten))
    if others := sorted(set(_files(target)) - made):
        raise BakeError(f"{others[0]}: was not written by baking; remove it, or bake the model again")


def _result(job: Job, target: Path, changed: int | None) -> Baked:
    size = sum(path.stat().st_size for path in _files(target))
    return Baked(target, job.plan, size, len(job.changes), changed, job.left_out, job.links)


@dataclass
class _Progress:
    """Counts the bytes that are done."""

    progress: Progress | None
    what: str
    total: int
    done: int = 0

    def __call__(self, num_bytes: int) -> None:
        self.done += num_bytes
        if self.progress:
            self.progress(self.what, self.done, self.total)


def _check_target(job: Job, target: Path, overwrite: bool) -> None:
    source, is_one_file = job.source, job.root.is_file()
    if not target.parent.is_dir():
        raise BakeError(f"{target}: the folder {target.parent} does not exist; create it first")
    is_there = os.path.lexists(target)
    if target.exists() and source.samefile(target):
        raise BakeError(f"{target}: is the source itself; choose another name")
    if source.is_dir() and source.resolve() in target.resolve().parents:
        raise BakeError(f"{target}: is inside the source; choose a path outside it")
    suffix = job.source.suffix
    if is_one_file and OPENERS.get(target.suffix.lower()) != OPENERS[suffix.lower()]:
        raise BakeError(f"{target}: expected a name that ends in {suffix}, as that of the source does")
    is_replaceable = is_one_file and target.is_file()
    if is_there and not (overwrite and is_replaceable):
        way_out = "overwrite it (--overwrite), or choose" if is_replaceable else "choose"
        raise BakeError(f"{target}: already exists; {way_out} another name")


def _place(root: Path, path: Path, target: Path) -> Path:
    """The path in the target of a file of the source."""
    return target if root == path else target / path.relative_to(root)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _copy(source: Path, target: Path, advance: Callable[[int], object]) -> None:
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as write:
        copy_range(read, write, 0, source.stat().st_size, advance)


def _is_same(one: Path, other: Path) -> bool:
    filecmp.clear_cache()  # it identifies files by size and time
    return filecmp.cmp(one, other, shallow=False)


def _expect(path: Path, is_right: bool) -> None:
    if not is_right:
        raise BakeError(f"{path}: is not what it should be; bake the model again")
