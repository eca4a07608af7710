"""Problems of this installation: versions known to be bad or limited, and damaged files of safeflux.

Versions are read from the metadata of installed packages. No package is imported, so the doctor works even if torch is
broken.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from safeflux.doctor.known import KNOWN, PACKAGES, Fact, Level
from safeflux.errors import SafeFluxError
from safeflux.reference.onnx_session import INSTALL, repair, runtimes

_SUMS = "sha256.txt"
_REQUIRED = "requirements of safeflux"
_REINSTALL = "reinstall safeflux: pip install --force-reinstall safeflux"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or limited."""

    what: str
    level: Level
    reason: str
    way_out: str
    source: str

    def __str__(self) -> str:
        """The finding on one line."""
        return f"{self.level}: {self.what}: {self.reason}; {self.way_out} ({self.source})"


def installed(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """The version of each package, None where it is not installed."""
    return {package: _version(package) for package in packages}


def find_known(versions: Mapping[str, str | None], facts: Iterable[Fact] = KNOWN) -> list[Finding]:
    """Known facts about the installed versions."""
    return [
        Finding(f"{fact.package} {found}", fact.level, fact.reason, fact.way_out, fact.source)
        for fact in facts
        if (found := versions.get(fact.package)) and _is_about(fact, found, versions)
    ]


def find_unmet() -> list[Finding]:
    """Unmet requirements of safeflux; an old version of a package that only extras require is a limit."""
    try:
        about = metadata("safeflux")
    except PackageNotFoundError:
        reason = "it was not installed with pip, so its requirements are not known"
        return [Finding("safeflux", Level.LIMIT, reason, "pip install safeflux", _REQUIRED)]
    requirements = [Requirement(line) for line in about.get_all("Requires-Dist", [])]
    extras = about.get_all("Provides-Extra", [])
    base = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    optional = [
        one
        for one in requirements
        if one not in base
        and canonicalize_name(one.name) in PACKAGES
        and any(one.marker and one.marker.evaluate({"extra": extra}) for extra in extras)
    ]
    findings = {one.name: _unmet(one, is_extra=True) for one in optional}
    findings |= {one.name: _unmet(one, is_extra=False) for one in base}
    return [finding for finding in findings.values() if finding]


def find_onnxruntime() -> list[Finding]:
    """Problems of ONNX Runtime: several distributions provide it, and they overwrite each other's files."""
    found, source = runtimes(), "microsoft/onnxruntime#26996"
    spec = find_spec("onnxruntime")
    if len(found) > 1:
        reason = "they are installed side by side and share files, so ONNX Runtime may not find the GPU, or not load"
        return [Finding(" and ".join(found), Level.BAD, reason, repair(), source)]
    if found and (spec is None or spec.origin is None):
        reason = "its files are missing, which happens when another ONNX Runtime is uninstalled"
        return [Finding(next(iter(found)), Level.BAD, reason, repair(), source)]
    if not found:
        reason = "it is not installed, so `demo`, `eval` and `train` have no judge; nothing else needs it"
        return [Finding("ONNX Runtime", Level.LIMIT, reason, INSTALL, _REQUIRED)]
    return []


def find_damage() -> list[Finding]:
    """Files of safeflux (weights, masks, policies) that are missing or changed."""
    damaged = [Finding(name, Level.BAD, reason, _REINSTALL, _SUMS) for name, reason in _differences()]
    return damaged + [Finding(name, Level.BAD, reason, _REINSTALL, "mask format 1") for name, reason in _unreadable()]


def shipped() -> dict[str, Traversable]:
    """Every data file that is shipped and read, by its path in the repository."""
    found: dict[str, Traversable] = {}
    for top, package in (("policies", "safeflux.policies"), ("safeflux/reference", "safeflux.reference")):
        with suppress(ModuleNotFoundError):  # then each of its files is missing
            found.update(_walk(top, files(package)))
    return dict(sorted(found.items()))


def _walk(path: str, folder: Traversable) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(f"{path}/{entry.name}", entry)
        elif entry.name.endswith((".safetensors", ".onnx", ".json", ".yaml")):
            yield f"{path}/{entry.name}", entry


def _differences() -> Iterator[tuple[str, str]]:
    """Files that differ from the list of digests, and how."""
    there = shipped()
    try:
        lines = (files("safeflux.reference") / _SUMS).read_bytes().decode("ascii", errors="replace").splitlines()
    except OSError:
        yield f"safeflux/reference/{_SUMS}", "is missing, so no other file can be checked"
        return
    for line in lines:
        digest, _, name = line.partition("  ")
        if name not in there:
            yield name, "is missing"
        elif hashlib.sha256(there[name].read_bytes()).hexdigest() != digest:
            yield name, "is damaged: its sha256 is not that of the shipped file"


def _unreadable() -> Iterator[tuple[str, str]]:
    """Masks that the reader refuses, with the reason."""
    masks = {name: entry for name, entry in shipped().items() if name.startswith("policies/masks/")}
    try:
        from safeflux.masks.encoding import decode
    except ImportError as error:
        yield "policies/masks", f"cannot be read: {error}"
        return
    for name, entry in masks.items():
        try:
            decode(entry.read_bytes(), name)
        except SafeFluxError as error:
            yield name, f"is refused by the reader ({error})"


def _unmet(requirement: Requirement, *, is_extra: bool) -> Finding | None:
    found, wanted = _version(requirement.name), str(requirement.specifier)
    level, way_out = Level.LIMIT if is_extra else Level.BAD, f"pip install -U '{requirement.name}{wanted}'"
    if found is None and is_extra:
        return None
    if found is None:
        return Finding(requirement.name, level, "is not installed", way_out, _REQUIRED)
    what, number = f"{requirement.name} {found}", _number(found)
    if number is None:
        reason = f"its version cannot be compared with {wanted}, as safeflux requires"
        return Finding(what, Level.LIMIT, reason, way_out, _REQUIRED)
    if requirement.specifier.contains(number, prereleases=True):
        return None
    return Finding(what, level, f"is not {wanted}, which safeflux requires", way_out, _REQUIRED)


def _is_about(fact: Fact, found: str, versions: Mapping[str, str | None]) -> bool:
    number, affected = _number(found), SpecifierSet(fact.affected)
    return (
        (not fact.affected or (number is not None and affected.contains(number, prereleases=True)))
        and not (fact.unless and fact.unless in found)
        and not (fact.without and versions.get(fact.without))
    )


def _number(version: str) -> Version | None:
    """A version that can be compared; None for an invalid one, which `find_unmet` reports."""
    try:
        return Version(version)
    except InvalidVersion:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
