"""What is wrong with this installation: versions that are known to be bad or limited, and damaged files of our own.

Versions are read from what pip wrote down, so nothing of what is looked at is imported, and a broken torch does not
keep the doctor from speaking. The tables below are data only: each fact has a source that can be looked up, a CVE, a
thread on GitHub, or a test of ours.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.resources import files
from importlib.resources.abc import Traversable

from safeflux.errors import SafeFluxError

PACKAGES = (
    "safeflux",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "peft",
    "torchao",
    "bitsandbytes",
    "gguf",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "model-signing",
    "pyopenssl",
    "nunchaku",
    "optimum-quanto",
)
"""What is told of, installed or not."""
STANDS_FOR = {"onnxruntime": "onnxruntime-gpu"}
"""A requirement, and the package that does the same."""
_SUMS = "sha256.txt"
_INSTALL_ANEW = "install safeflux anew: pip install --force-reinstall safeflux"


class Level(StrEnum):
    """How much a finding matters."""

    BAD = "bad"
    """Something does not work, or is not safe."""
    LIMIT = "limit"
    """Something works within limits."""


@dataclass(frozen=True)
class Fact:
    """Something known of a package that is installed.

    Attributes:
        package: Its name on PyPI.
        level: How much it matters.
        reason: What happens.
        way_out: What to do.
        source: A CVE, a thread on GitHub, or a file of our tests.
        below: Only of versions before this one.
        beside: Only where this other package is installed too.
        without: Only where this other package is not installed.
        unless: Not of versions that have this in them.
    """

    package: str
    level: Level
    reason: str
    way_out: str
    source: str
    below: str = ""
    beside: str = ""
    without: str = ""
    unless: str = ""


KNOWN = (
    Fact(
        "torch",
        Level.BAD,
        "a crafted file can run code when torch.load(weights_only=True) reads it, as `safeflux mask import` does",
        "pip install -U 'torch>=2.10'",
        "CVE-2026-24747",
        below="2.10",
    ),
    Fact(
        "torch",
        Level.BAD,
        "torch.load(weights_only=True) runs code that a file brings along",
        "pip install -U 'torch>=2.10'",
        "CVE-2025-32434",
        below="2.6",
    ),
    Fact(
        "torchao",
        Level.LIMIT,
        "float8 weights with a scale for each row: a row that is all zero becomes NaN, and masks make such rows (seen "
        "with 0.18)",
        "use int8, or leave layers with masked rows out; `verify` tells",
        "pytorch/ao#4713, tests/test_values.py",
    ),
    Fact(
        "optimum-quanto",
        Level.LIMIT,
        "int4 weights do not hold an exact zero, so a masked weight is small and not off",
        "use int8 or float8",
        "huggingface/optimum-quanto#234",
    ),
    Fact(
        "nunchaku",
        Level.BAD,
        "the package of this name on PyPI is another one, and holds nothing of the SVDQuant engine",
        "pip uninstall nunchaku, and take a wheel from the releases of nunchux-ai/nunchaku (1.0.2+torch2.7 for one)",
        "nunchux-ai/ComfyUI-nunchaku#5",
        unless="+torch",
    ),
    Fact(
        "onnxruntime-gpu",
        Level.LIMIT,
        "onnxruntime is installed too: both write the same files, so the GPU may not be found",
        "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu",
        "microsoft/onnxruntime#26996",
        beside="onnxruntime",
    ),
    Fact(
        "model-signing",
        Level.BAD,
        "it cannot be imported without pyopenssl, which it does not ask for (1.1.1)",
        "pip install 'safeflux[sign]'",
        "tests/test_signing.py",
        without="pyopenssl",
    ),
    Fact(
        "diffusers",
        Level.LIMIT,
        "group offload to a folder that was used before takes the old files, weights that are not masked",
        "give each guarded model an empty folder; `verify` tells",
        "tests/test_values.py",
    ),
)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or limited here."""

    what: str
    level: Level
    reason: str
    way_out: str
    source: str

    def __str__(self) -> str:
        """In one line."""
        return f"{self.level}: {self.what}: {self.reason}; {self.way_out} ({self.source})"


def installed(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """The version of each package, None where it is not installed."""
    return {package: _version(package) for package in packages}


def find_known(versions: Mapping[str, str | None], facts: Iterable[Fact] = KNOWN) -> list[Finding]:
    """What is known of versions that are installed."""
    return [
        Finding(f"{fact.package} {found}", fact.level, fact.reason, fact.way_out, fact.source)
        for fact in facts
        if (found := versions.get(fact.package)) and _is_about(fact, found, versions)
    ]


def find_unmet() -> list[Finding]:
    """What safeflux asks for and does not find; an older version of what only an extra asks for is a limit."""
    try:
        about = metadata("safeflux")
    except PackageNotFoundError:
        reason = "pip does not know it, so what it asks for cannot be told"
        return [Finding("safeflux", Level.LIMIT, reason, "pip install safeflux", "pyproject.toml")]
    findings: dict[str, Finding | None] = {}
    for line in about.get_all("Requires-Dist", []):
        parts = re.fullmatch(r"([\w.-]+)(?:\[.*?\])?.*?>=([\w.]+)(.*)", line)
        assert parts, f"a requirement of ours without NAME>=VERSION: {line}"
        package, least, condition = parts.groups()
        is_extra = "extra" in condition
        if package in PACKAGES or not is_extra:
            findings[package] = findings.get(package) or _unmet(package, least, is_extra=is_extra)
    return [finding for finding in findings.values() if finding]


def find_damage() -> list[Finding]:
    """Which of our own files, weights and masks and policies, are missing or not as they were shipped."""
    damaged = [Finding(name, Level.BAD, reason, _INSTALL_ANEW, _SUMS) for name, reason in _differences()]
    return damaged + [
        Finding(name, Level.BAD, reason, _INSTALL_ANEW, "docs/mask-format.md") for name, reason in _unreadable()
    ]


def shipped() -> dict[str, Traversable]:
    """Every file of data that is shipped and read, by its path in the repository."""
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
    """Paths that differ from the list of digests, and how."""
    there = shipped()
    try:
        lines = (files("safeflux.reference") / _SUMS).read_bytes().decode("ascii", errors="replace").splitlines()
    except OSError:
        yield f"safeflux/reference/{_SUMS}", "is missing, so no other file can be told to be whole"
        return
    for line in lines:
        digest, _, name = line.partition("  ")
        if name not in there:
            yield name, "is missing"
        elif hashlib.sha256(there[name].read_bytes()).hexdigest() != digest:
            yield name, "is damaged: its sha256 is not that of the file that was shipped"


def _unreadable() -> Iterator[tuple[str, str]]:
    """Masks that the strict reader refuses, with the reason."""
    masks = {name: entry for name, entry in shipped().items() if name.startswith("policies/masks/")}
    try:
        from safeflux.maskfile import decode
    except ImportError as error:
        yield "policies/masks", f"cannot be read: {error}"
        return
    for name, entry in masks.items():
        try:
            decode(entry.read_bytes(), name)
        except SafeFluxError as error:
            yield name, f"is refused by the reader ({error})"


def _unmet(package: str, least: str, *, is_extra: bool) -> Finding | None:
    found = _version(package) or _version(STANDS_FOR.get(package, package))
    level, source = Level.LIMIT if is_extra else Level.BAD, "pyproject.toml"
    if found and _numbers(found) < _numbers(least):
        reason = f"is older than {least}, the oldest that safeflux is made for"
        return Finding(f"{package} {found}", level, reason, f"pip install -U '{package}>={least}'", source)
    if not found and not is_extra:
        return Finding(package, level, "is not installed", f"pip install '{package}>={least}'", source)
    return None


def _is_about(fact: Fact, found: str, versions: Mapping[str, str | None]) -> bool:
    return (
        not (fact.below and _numbers(found) >= _numbers(fact.below))
        and not (fact.unless and fact.unless in found)
        and not (fact.beside and not versions.get(fact.beside))
        and not (fact.without and versions.get(fact.without))
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers that a version starts with, without zeros at the end: 2.10.0rc1 and 2.10 are (2, 10)."""
    match = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
