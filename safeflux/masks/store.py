"""Stores of mask sets: the bundled one first, then the folders that the caller gives.

A store is a folder with one file for each mask set, in any subfolders, usually `<base model>/<mask set>.safetensors`.
The name alone does not select a file: its masks must have been trained for the base weights at hand. Nothing outside
the folder is opened. If two files fit, that is an error: choosing one would be a guess.

A store can also be a repository of the Hugging Face Hub at one commit, `hf://ORG/NAME@COMMIT`.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from safeflux.disk.hub import ADDRESS, masks_at
from safeflux.errors import MaskMismatchError, StoreError
from safeflux.evidence.signatures import signature_path
from safeflux.families.fingerprint import same_base
from safeflux.masks.encoding import decode, decode_meta
from safeflux.masks.file import read_bytes
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.meta import MaskMeta
from safeflux.policy.claims import Claim

StoreLike = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_SUFFIX = ".safetensors"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class StoredMask:
    """One mask set in a store: its name, path, the digest of the file's bytes, and its content."""

    name: str
    path: Path
    sha256: str
    meta: MaskMeta
    masks: MaskSet
    address: str = ""
    """Of the repository that it is from; empty for a folder."""

    @property
    def claim(self) -> Claim:
        """What the file says that it erases."""
        return _claim(self.name, self.path, self.meta)


class Store:
    """Folders in which mask sets are looked up, in order, and public keys to check their signatures.

    Args:
        roots: The folders, each of which must exist, and addresses `hf://ORG/NAME@COMMIT`.
        keys: PEM files. Only those that a policy lists count.

    Raises:
        StoreError: A root is not a folder, or a repository that can be had.
    """

    def __init__(self, roots: Iterable[str | os.PathLike[str]], keys: Iterable[str | os.PathLike[str]] = ()) -> None:
        """Resolve the folders, so that links out of them are noticed."""
        self._given = [os.fspath(root) for root in roots]
        self.roots, self.keys = tuple(map(_folder_of, self._given)), tuple(keys)
        both = zip(self.roots, self._given, strict=True)
        self._addresses = {root: address for root, address in both if address.startswith(ADDRESS)}
        for root in self.roots:
            if not root.is_dir():
                raise StoreError(f"store {root}: expected a folder with mask files, found none; check the path")

    def including(self, addresses: Iterable[str]) -> "Store":
        """Return this store with repositories after it: those that a policy names (`stores`).

        Args:
            addresses: Each `hf://ORG/NAME@COMMIT`; those that it has already change nothing.

        Raises:
            StoreError: One is not such an address, or cannot be had.
        """
        more = [address for address in addresses if address not in self._given]
        return Store([*self._given, *more], self.keys) if more else self

    def names(self) -> list[str]:
        """Return the sorted names of all mask sets, for any base model."""
        return sorted({path.stem for root in self.roots for path in root.rglob(f"*{_SUFFIX}")})

    def metas(self, name: str) -> list[tuple[Path, MaskMeta]]:
        """Return the path and metadata of each file of this name, for any base model; an empty list if there is none.

        Raises:
            StoreError: A file lies outside the store.
            MaskFileError: A file of this name is damaged.
        """
        return [(path, decode_meta(read_bytes(path), os.fspath(path))) for _, path in self._places(name)]

    def claims(self, name: str) -> list[Claim]:
        """Return what each file of this name says it erases, for any base model."""
        return [_claim(name, path, meta) for path, meta in self.metas(name)]

    def suggest(self, name: str) -> str:
        """Return the end of a message about a name that is not in the store: the nearest name, or all names."""
        known = self.names()
        near = difflib.get_close_matches(name, known, n=1)
        return f"did you mean {near[0]!r}?" if near else f"it holds: {', '.join(known) or 'nothing'}"

    def find(self, name: str, base: str) -> StoredMask:
        """Return the mask set of this name for the base model with this fingerprint.

        Raises:
            StoreError: No mask set has this name, two different ones fit, or the file lies outside the store.
            MaskMismatchError: Mask sets of this name exist, but only for other base models.
            MaskFileError: A file of this name is damaged.
        """
        others = []
        fits: dict[str, tuple[Path, Path, bytes]] = {}
        for root, path in self._places(name):
            data = read_bytes(path)
            meta = decode_meta(data, os.fspath(path))
            if same_base(meta.fingerprint, base):
                sha256 = hashlib.sha256(data).hexdigest()
                if sha256 not in fits or signature_path(path).is_file():  # of two copies, the signed one
                    fits[sha256] = root, path, data
            else:
                others.append(meta.base_model)
        if len(fits) > 1:
            found = ", ".join(str(path) for _, path, _ in fits.values())
            raise StoreError(
                f"mask set {name!r}: two different files fit this base model ({found}); remove or rename one"
            )
        if not fits:
            self._refuse(name, base, others)
        sha256, (root, path, data) = next(iter(fits.items()))
        masks, meta = decode(data, os.fspath(path))
        return StoredMask(name, path, sha256, meta, masks, self._addresses.get(root, ""))

    def _places(self, name: str) -> list[tuple[Path, Path]]:
        """Each file of this name, after the store's folder that it is in."""
        if not _NAME.fullmatch(name):
            raise StoreError(f"mask set {name!r}: expected a name of lower-case letters, digits, '_' and '-'")
        found = []
        for root in self.roots:
            # The hub's cache has links to where it keeps the files of all commits.
            within = root.parent.parent if root in self._addresses else root
            for path in sorted(root.rglob(name + _SUFFIX)):
                if not path.resolve().is_relative_to(within):
                    raise StoreError(
                        f"mask set {name!r}: {path} is a link out of the store {root}; put the file itself there"
                    )
                found.append((root, path))
        return found

    def _refuse(self, name: str, base: str, others: list[str]) -> None:
        if others:
            raise MaskMismatchError(
                f"mask set {name!r} was trained for other base weights ({', '.join(sorted(set(others)))}), not for "
                f"this model (fingerprint {base[:24]}...). Use masks trained for this model, or load their base model. "
                "Merged adapters, or masks written by other means, also change the weights of a model."
            )
        roots = ", ".join(map(str, self.roots))
        raise StoreError(f"mask set {name!r} is not in the store ({roots}); {self.suggest(name)}")


def _folder_of(root: str) -> Path:
    if not root:  # as a path it would be the current folder
        raise StoreError("store: expected a folder, or hf://ORG/NAME@COMMIT, got an empty text; is a variable not set?")
    return (masks_at(root) if root.startswith(ADDRESS) else Path(root)).resolve()


def _claim(name: str, path: Path, meta: MaskMeta) -> Claim:
    return Claim(name, os.fspath(path), meta.category, meta.concepts)


def open_store(store: StoreLike | Store | None = None, keys: Iterable[str | os.PathLike[str]] = ()) -> Store:
    """Return the bundled masks, followed by the given folders, with public keys for policies that list any.

    Args:
        store: A folder, or an address `hf://ORG/NAME@COMMIT`; or several.
        keys: PEM files.

    Raises:
        StoreError: A given path is empty, not a folder, or no repository that can be had.
    """
    if isinstance(store, Store):
        return Store(store._given, [*store.keys, *keys]) if keys else store
    extra = [] if store is None else [store] if isinstance(store, str | os.PathLike) else list(store)
    bundled = Path(str(files("safeflux.policies").joinpath("masks")))
    return Store([*([bundled] if bundled.is_dir() else []), *extra], keys)
