"""Checks policies one by one: whether each is valid, and whether its mask files erase what it says."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeflux.errors import SafeFluxError
from safeflux.policy.claims import Claims, faults, strangers
from safeflux.policy.load import bundled_policies, load_policy, load_policy_text
from safeflux.policy.report import Case, Finding
from safeflux.policy.schema import Origin, Policy
from safeflux.policy.yaml_reader import Issue, PolicyFileError, read_document

STDIN = "-"


@dataclass(frozen=True)
class Checked:
    """The result for one policy."""

    name: str
    digest: str | None
    """None if it is not valid."""
    findings: tuple[Finding, ...]
    error: SafeFluxError | None
    """Why it could not be checked, or is not valid."""

    @property
    def case(self) -> Case:
        """For reports."""
        return Case(self.name, "valid", self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = {"policy": self.name, "ok": not self.case.errors}
        by_level = {
            key: [finding.as_dict() for finding in self.findings if finding.level == level]
            for key, level in (("issues", "error"), ("warnings", "warning"))
        }
        return {**facts, **({"digest": self.digest} if self.digest else {}), **by_level}


def expand(names: Iterable[str]) -> list[str]:
    """The names, with each folder replaced by the YAML files in it and its subfolders.

    Hidden files and folders are left out, and so are files of expectations, which are for `policy test`. A folder
    without a policy stays, and is an error when it is checked.
    """
    found: list[str] = []
    for name in names:
        folder = Path(name)
        if not _is_folder(name):
            found.append(name)
            continue
        files = [path for path in folder.rglob("*.y*ml") if path.suffix in (".yaml", ".yml") and path.is_file()]
        seen = [
            path
            for path in files
            if not any(part.startswith(".") for part in path.relative_to(folder).parts) and not _is_test(path)
        ]
        found += map(str, sorted(seen) or [folder])
    return found


def _is_folder(name: str) -> bool:
    return name != STDIN and name not in bundled_policies() and Path(name).is_dir()


def _is_test(path: Path) -> bool:
    try:
        value = read_document(path, str(path)).value
    except PolicyFileError:
        return False
    return isinstance(value, dict) and value.get("kind") == "PolicyTest"


def check(name: str, masks: Callable[[], Claims], *, has_own: bool, stdin: bytes = b"") -> Checked:
    """Check one policy.

    Args:
        name: A bundled name, a path, or `-` for the text in `stdin`.
        masks: Opens the store in which its masks are looked up. Only called if needed, since it takes longer than
            everything else: the names of bundled masks say what they erase.
        has_own: The store holds more than the bundled masks, so an unknown mask is a warning. So it is for a policy
            that names stores.
        stdin: The text for `-`.
    """
    try:
        if _is_folder(name):
            issue = Issue(name, 0, 0, "expected a policy (.yaml or .yml) in this folder, found none")
            raise PolicyFileError([issue]) from FileNotFoundError(name)
        policy = load_policy_text(stdin, "<stdin>") if name == STDIN else load_policy(name)
        has_own = has_own or bool(policy.stores)
        if not has_own and all(set(part.masks) <= {key, *part.erases} for key, part in policy.categories.items()):
            return Checked(name, policy.digest, (), None)
        found = list(mask_findings(policy, masks().including(policy.stores)))
    except SafeFluxError as error:
        return Checked(name, None, findings_of(error, name), error)
    return Checked(name, policy.digest, tuple(one for one in found if has_own or one.level == "error"), None)


def findings_of(error: SafeFluxError, name: str) -> tuple[Finding, ...]:
    """Why a file could not be checked or tested, for reports; `name` is the file as given."""
    if isinstance(error, PolicyFileError):
        return tuple(Finding("policy-invalid", i.file, i.line, i.column, i.message) for i in error.issues)
    return (Finding("mask-unreadable", name, 0, 0, str(error)),)


def mask_findings(policy: Policy, masks: Claims) -> Iterator[Finding]:
    """Warnings for masks that are in no store, and errors for masks that do not erase what the policy says."""
    for name, category in policy.categories.items():
        origin = policy.origins.get(f"categories.{name}.masks", Origin(policy.name, 0))
        claims = {mask: masks.claims(mask) for mask in category.masks}
        # One name can have files for several base models: it is enough that one of them erases what the policy says.
        fitting = [[claim for claim in found if not strangers(name, category, [claim])] for found in claims.values()]
        known = [claim for some, found in zip(fitting, claims.values(), strict=True) for claim in some or found]
        unknown = [mask for mask, found in claims.items() if not found]
        for mask in unknown:
            message = f"category {name!r}: mask set {mask!r} is in no store; {masks.suggest(mask)}"
            yield Finding("mask-unknown", origin.file, origin.line, 0, message, "warning")
        for fault in (strangers if unknown else faults)(name, category, known):
            yield Finding("mask-mismatch", origin.file, origin.line, 0, f"category {name!r}: {fault}")
