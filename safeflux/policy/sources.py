"""Where a policy is read from: a bundled file, a path, or a text at hand; and where its parent is."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from safeflux.policy.validate import show, suggest
from safeflux.policy.yaml_reader import Issue, PolicyFileError, Readable

_MAX_PARENTS = 8


@dataclass(frozen=True)
class Given:
    """A policy's text that was read already."""

    data: bytes

    def open(self, mode: str) -> BytesIO:
        """Read it once more."""
        return BytesIO(self.data)


@dataclass(frozen=True)
class Source:
    """A policy file to read, and its name in messages."""

    entry: Readable
    label: str
    folder: Path | Mapping[str, bytes] | None = None
    """The folder of its parents, or its files already read; None for a bundled policy, whose parents are bundled."""

    @property
    def identity(self) -> str:
        """The same for the same file."""
        return str(self.entry.resolve()) if isinstance(self.entry, Path) else self.label


def bundled_policies() -> list[str]:
    """The names of the policies that come with safeflux."""
    return sorted(
        e.name.removesuffix(".yaml") for e in files("safeflux.policies").iterdir() if e.name.endswith(".yaml")
    )


def is_path(text: str) -> bool:
    """Whether a reference to a policy is a file's path, and not a bundled name."""
    return text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text


def root(policy: str | os.PathLike[str]) -> Source:
    """The file of a policy, given a bundled name or a path.

    Raises:
        PolicyFileError: There is no bundled policy of this name.
    """
    text = os.fspath(policy)
    if not isinstance(policy, str) or is_path(text):
        return Source(Path(text), text, Path(text).parent)
    if text not in bundled_policies():
        hint = suggest(text, bundled_policies())
        message = f"no bundled policy has this name{hint} (a file's path ends in .yaml)"
        raise PolicyFileError([Issue(text, 0, 0, message)]) from FileNotFoundError(text)
    return _bundled(text)


def parent_of(extends: str, seen: Sequence[Source]) -> Source:
    """The file of a parent.

    Args:
        extends: What the child says.
        seen: The child, and those whose parent it is.

    Raises:
        ValueError: It does not exist or is not allowed; the message says why.
    """
    reference = extends.partition("@")[0]
    if not is_path(reference):
        if reference not in bundled_policies():
            raise ValueError(f"no bundled policy is named {show(reference)}{suggest(reference, bundled_policies())}")
        source = _bundled(reference)
    else:
        source = _beside(seen[-1], reference)
    if source.identity in [one.identity for one in seen]:
        circle = " -> ".join(one.label for one in [*seen, source])
        raise ValueError(f"extends in a circle: {circle}")
    if len(seen) > _MAX_PARENTS:
        raise ValueError(f"expected at most {_MAX_PARENTS} parents in a chain, got more")
    return source


def _bundled(name: str) -> Source:
    return Source(files("safeflux.policies") / f"{name}.yaml", f"bundled:{name}.yaml")


def _beside(child: Source, reference: str) -> Source:
    folder = child.folder
    if folder is None:
        raise ValueError("a bundled policy can only extend a bundled policy, by name")
    if isinstance(folder, Mapping):
        name = reference.removeprefix("./")
        if name not in folder:
            raise ValueError(f"{show(reference)} does not exist next to this file{suggest(name, list(folder))}")
        return Source(Given(folder[name]), name, folder)
    target = folder / reference
    if Path(reference).is_absolute() or not target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the parent {show(reference)} is outside this file's folder; put it next to this file")
    if not target.is_file():
        raise ValueError(f"{target} does not exist")
    return Source(target, str(target), target.parent)
