"""Loading policies: one file and its parents become one effective policy, or one error that lists all problems.

A policy may extend one parent, and may only tighten it: add categories and masks, erase more, raise an action, lower
the budget, allow fewer adapters, require signatures or accept fewer keys. So a reader of a child knows that at least
the parent is in force. The schema itself is in `schema`.
"""

import math
import os
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

from safeflux.policy.claims import required
from safeflux.policy.schema import (
    Action,
    Adapters,
    Budget,
    Category,
    Origin,
    Policy,
    PolicyFile,
    Signatures,
    is_looser,
    policy_schema,
)
from safeflux.policy.validate import read_policy_file, show, suggest
from safeflux.policy.yaml_reader import Document, Issue, Loc, PolicyFileError, Readable

__all__ = [
    "Action",
    "Adapters",
    "Budget",
    "Category",
    "Issue",
    "Origin",
    "Policy",
    "PolicyFileError",
    "Signatures",
    "bundled_policies",
    "load_policy",
    "policy_schema",
]

_MAX_PARENTS = 8


@dataclass(frozen=True)
class _Source:
    """A policy file to read, and its name in messages."""

    entry: Readable
    label: str
    folder: Path | None = None
    """The folder of its parents; None for a bundled policy, whose parents are bundled."""

    @property
    def identity(self) -> str:
        return str(self.entry.resolve()) if isinstance(self.entry, Path) else self.label


@dataclass(frozen=True)
class _Given:
    """A policy that is not in a file."""

    data: bytes

    def open(self, mode: str) -> BytesIO:
        return BytesIO(self.data)


def bundled_policies() -> list[str]:
    """The names of the policies that come with safeflux."""
    return sorted(
        e.name.removesuffix(".yaml") for e in files("safeflux.policies").iterdir() if e.name.endswith(".yaml")
    )


def load_policy(policy: str | os.PathLike[str] | Policy) -> Policy:
    """The effective policy of a bundled name (`strict`), of a path (`my/policy.yaml`), or of a `Policy`.

    A `Policy` is returned unchanged. A string without a folder and without the suffix `.yaml` or `.yml` is a bundled
    name.

    Raises:
        PolicyFileError: The file or one of its parents cannot be read, is not valid, or loosens its parent. The error's
            `issues` hold every problem with file, line and column. Whether a child loosens its parent is only checked
            once all files are valid.
    """
    return policy if isinstance(policy, Policy) else _effective(_root(policy))


def load_policy_text(data: bytes, label: str) -> Policy:
    """The effective policy of a text, such as standard input; its parents are in the current folder.

    Raises:
        PolicyFileError: As for `load_policy`.
    """
    return _effective(_Source(_Given(data), label, Path()))


def _effective(source: _Source) -> Policy:
    effective: Policy | None = None
    for file, document in reversed(_read_chain(source)):
        effective = _Merge(document, effective).merge(file)
    assert effective is not None
    return effective


def _root(policy: str | os.PathLike[str]) -> _Source:
    text = os.fspath(policy)
    if not isinstance(policy, str) or is_path(text):
        return _Source(Path(text), text, Path(text).parent)
    if text not in bundled_policies():
        hint = suggest(text, bundled_policies())
        message = f"no bundled policy has this name{hint} (a file's path ends in .yaml)"
        raise PolicyFileError([Issue(text, 0, 0, message)]) from FileNotFoundError(text)
    return _bundled(text)


def is_path(text: str) -> bool:
    """Whether a reference to a policy is a file's path, and not a bundled name."""
    return text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text


def _bundled(name: str) -> _Source:
    return _Source(files("safeflux.policies") / f"{name}.yaml", f"bundled:{name}.yaml")


def _read_chain(source: _Source | None) -> list[tuple[PolicyFile, Document]]:
    """The file and its parents, the child first, each valid on its own."""
    chain: list[tuple[PolicyFile, Document]] = []
    issues: list[Issue] = []
    seen: list[_Source] = []
    unread: PolicyFileError | None = None
    while source is not None:
        seen.append(source)
        try:
            file, document = read_policy_file(source.entry, source.label, PolicyFile)
        except PolicyFileError as error:
            issues.extend(error.issues)
            unread = error
            break
        issues.extend(document.issues)
        if file is None:
            break
        chain.append((file, document))
        source = None
        if file.extends:
            try:
                source = _parent(file.extends, seen)
            except ValueError as error:
                issues.append(document.issue(("extends",), str(error)))
    if issues:
        raise PolicyFileError(issues) from unread
    return chain


def _parent(extends: str, seen: list[_Source]) -> _Source:
    """The parent's file; a ValueError tells why there is none."""
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


def _beside(child: _Source, reference: str) -> _Source:
    folder = child.folder
    if folder is None:
        raise ValueError("a bundled policy can only extend a bundled policy, by name")
    target = folder / reference
    if Path(reference).is_absolute() or not target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the parent {show(reference)} is outside this file's folder; put it next to this file")
    if not target.is_file():
        raise ValueError(f"{target} does not exist")
    return _Source(target, str(target), target.parent)


class _Merge:
    """One step of inheritance: a valid file over its effective parent. Collects every place where it loosens it."""

    def __init__(self, document: Document, parent: Policy | None) -> None:
        self.document = document
        self.parent = parent
        self.origins = parent.origins if parent else {}
        self.issues: list[Issue] = []

    def merge(self, file: PolicyFile) -> Policy:
        """The effective policy, or a PolicyFileError with all places where the child is looser than its parent."""
        parent = self.parent
        self._check_pin(file)
        categories = self._categories(file)
        theirs = parent.adapters if parent else file.adapters
        adapters = self._take(("adapters",), file.adapters, theirs, is_looser(file.adapters, theirs))
        allowlist = self._allowlist(file, adapters)
        scale = self._scale(file, adapters)
        budget = parent.budget if parent else file.budget
        mine, limit = file.budget.max_share_masked, budget.max_share_masked
        share = self._take(("budget", "max_share_masked"), mine, limit, mine > limit)
        signers = self._signers(file)
        if not categories and not self.issues:
            self._report(("categories",), "the policy has no categories, so it would guard against nothing; add one")
        if self.issues:
            raise PolicyFileError(self.issues)
        return Policy.with_origins(
            self.origins,
            name=file.name,
            description=file.description,
            adapters=adapters,
            adapter_allowlist=allowlist,
            adapter_max_scale=scale,
            budget=Budget(max_share_masked=share),
            signatures=Signatures(keys=signers),
            categories=categories,
        )

    def _take(self, loc: Loc, mine: Any, theirs: Any, is_looser: bool) -> Any:
        """The child's value if it is written, else the parent's; records where it is written."""
        if loc not in self.document.values:
            return theirs
        key = ".".join(str(part) for part in loc)
        if is_looser:
            was = self.origins.get(key, "default")
            self._report(loc, f"loosens {key}: the parent has {_plain(theirs)} ({was}); a child may only tighten")
        self.origins[key] = Origin(self.document.file, self.document.line(loc))
        return mine

    def _categories(self, file: PolicyFile) -> dict[str, Category]:
        merged = dict(self.parent.categories) if self.parent else {}
        for name, mine in file.categories.items():
            loc = ("categories", name)
            theirs = merged.get(name, mine)
            dropped = set(theirs.masks) - set(mine.masks)
            action = self._take((*loc, "action"), mine.action, theirs.action, is_looser(mine.action, theirs.action))
            masks = self._take((*loc, "masks"), mine.masks, theirs.masks, bool(dropped))
            lost = set(required(name, theirs)) - set(required(name, mine))
            erases = self._take((*loc, "erases"), mine.erases, required(name, theirs), bool(lost))
            if not masks:
                self._report(loc, f"the category {name} names no masks")
            else:
                more = {} if erases == (name,) else {"erases": erases}
                merged[name] = Category(action=action, masks=masks, **more)
        return merged

    def _allowlist(self, file: PolicyFile, adapters: Adapters) -> tuple[str, ...]:
        loc = ("adapter_allowlist",)
        mine, theirs = file.adapter_allowlist, self.parent.adapter_allowlist if self.parent else ()
        is_wider = (
            self.parent is not None and self.parent.adapters is Adapters.ALLOWLIST and not set(mine) <= set(theirs)
        )
        listed: tuple[str, ...] = self._take(loc, mine, theirs, is_wider)
        if adapters is Adapters.ALLOWLIST and not listed:
            self._report(("adapters",), "adapters: allowlist needs the key adapter_allowlist with at least one sha256")
        if adapters is not Adapters.ALLOWLIST and loc in self.document.values:
            self._report(loc, f"adapter_allowlist has no meaning where adapters is {adapters}", key=True)
        if adapters is Adapters.ALLOWLIST:
            return listed
        self.origins.pop("adapter_allowlist", None)
        return ()

    def _scale(self, file: PolicyFile, adapters: Adapters) -> float:
        loc = ("adapter_max_scale",)
        mine, theirs = file.adapter_max_scale, self.parent.adapter_max_scale if self.parent else math.inf
        scale: float = self._take(loc, mine, theirs, mine > theirs)
        if adapters is not Adapters.DENY:
            return scale
        if loc in self.document.values:
            self._report(loc, "adapter_max_scale has no meaning where adapters is deny", key=True)
        self.origins.pop("adapter_max_scale", None)
        return math.inf

    def _signers(self, file: PolicyFile) -> tuple[str, ...]:
        mine, theirs = file.signatures.keys, self.parent.signatures.keys if self.parent else ()
        is_wider = bool(theirs) and not (mine and set(mine) <= set(theirs))
        signers: tuple[str, ...] = self._take(("signatures", "keys"), mine, theirs, is_wider)
        return signers

    def _check_pin(self, file: PolicyFile) -> None:
        pin = file.extends.partition("@sha256:")[2]
        if self.parent and pin and pin != self.parent.digest:
            found = self.parent.digest
            self._report(("extends",), f"the parent is not the pinned one: expected sha256:{pin}, got sha256:{found}")

    def _report(self, loc: Loc, message: str, *, key: bool = False) -> None:
        self.issues.append(self.document.issue(loc, message, key=key))


def _plain(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
