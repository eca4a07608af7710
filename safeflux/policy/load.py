"""Loading policies: one file and its parents become one effective policy, or one error that lists all problems.

A policy may extend one parent, and may only tighten it: add categories and masks, erase more, raise an action, lower
the budget, allow fewer adapters, require signatures or accept fewer keys. So a reader of a child knows that at least
the parent is in force. The schema itself is in `schema`.
"""

import math
import os
from collections.abc import Mapping
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
from safeflux.policy.sources import Given, Source, bundled_policies, parent_of, root
from safeflux.policy.validate import read_policy_file
from safeflux.policy.yaml_reader import Document, Issue, Loc, PolicyFileError

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


def load_policy(policy: str | os.PathLike[str] | Policy) -> Policy:
    """The effective policy of a bundled name (`strict`), of a path (`my/policy.yaml`), or of a `Policy`.

    A `Policy` is returned unchanged. A string without a folder and without the suffix `.yaml` or `.yml` is a bundled
    name.

    Raises:
        PolicyFileError: The file or one of its parents cannot be read, is not valid, or loosens its parent. The error's
            `issues` hold every problem with file, line and column. Whether a child loosens its parent is only checked
            once all files are valid.
    """
    return policy if isinstance(policy, Policy) else _effective(root(policy))


def load_policy_text(data: bytes, label: str) -> Policy:
    """The effective policy of a text, such as standard input; its parents are in the current folder.

    Raises:
        PolicyFileError: As for `load_policy`.
    """
    return _effective(Source(Given(data), label, Path()))


def load_policy_texts(texts: Mapping[str, bytes]) -> dict[str, Policy]:
    """The effective policies of a folder's files, given as they were read: names of files -> their bytes.

    Parents are bundled, or among these files; nothing else is read.

    Raises:
        PolicyFileError: As for `load_policy`, with the problems of all of them.
    """
    found: dict[str, Policy] = {}
    issues: list[Issue] = []
    for name, data in texts.items():
        try:
            found[name] = _effective(Source(Given(data), name, texts))
        except PolicyFileError as error:
            issues.extend(issue for issue in error.issues if issue not in issues)
    if issues:
        raise PolicyFileError(issues)
    return found


def _effective(source: Source) -> Policy:
    effective: Policy | None = None
    for file, document in reversed(_read_chain(source)):
        effective = _Merge(document, effective).merge(file)
    assert effective is not None
    return effective


def _read_chain(source: Source | None) -> list[tuple[PolicyFile, Document]]:
    """The file and its parents, the child first, each valid on its own."""
    chain: list[tuple[PolicyFile, Document]] = []
    issues: list[Issue] = []
    seen: list[Source] = []
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
                source = parent_of(file.extends, seen)
            except ValueError as error:
                issues.append(document.issue(("extends",), str(error)))
    if issues:
        raise PolicyFileError(issues) from unread
    return chain


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
        signers, stores = self._signers(file), self._stores(file)
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
            stores=stores,
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

    def _stores(self, file: PolicyFile) -> tuple[str, ...]:
        """The parent's and the child's own, of which one can only add masks: two files of one name are refused."""
        theirs = self.parent.stores if self.parent else ()
        return self._take(("stores",), tuple(dict.fromkeys((*theirs, *file.stores))), theirs, is_looser=False)

    def _check_pin(self, file: PolicyFile) -> None:
        pin = file.extends.partition("@sha256:")[2]
        if self.parent and pin and pin != self.parent.digest:
            found = self.parent.digest
            self._report(("extends",), f"the parent is not the pinned one: expected sha256:{pin}, got sha256:{found}")

    def _report(self, loc: Loc, message: str, *, key: bool = False) -> None:
        self.issues.append(self.document.issue(loc, message, key=key))


def _plain(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
