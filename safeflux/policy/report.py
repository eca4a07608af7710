"""Results of checks and tests of policies in the formats of CI systems: GitHub annotations, SARIF 2.1.0, JUnit XML."""

import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from safeflux._version import __version__
from safeflux.policy.characters import printable

RULES = {
    "policy-invalid": "The policy file cannot be read or does not follow the schema.",
    "mask-unknown": "A mask set that the policy names is in no store.",
    "mask-unreadable": "A store that the policy names, or a mask file, cannot be read.",
    "mask-mismatch": "A mask file does not erase what the policy says.",
    "expectation-failed": "The policy does not meet an expectation.",
}
"""The rules of findings, with a description."""


@dataclass(frozen=True)
class Finding:
    """One problem and its place; line and column count from 1, and are 0 for the file as a whole."""

    rule: str
    file: str
    line: int
    column: int
    message: str
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        """`shop.yaml:5:3: warning: mask set ...`."""
        place = ":".join(str(part) for part in (printable(self.file), self.line, self.column) if part)
        return f"{place}: {'warning: ' if self.level == 'warning' else ''}{self.message}"

    def as_dict(self) -> dict[str, Any]:
        """The finding for JSON."""
        return {"file": self.file, "line": self.line, "column": self.column, "message": self.message}


@dataclass(frozen=True)
class Case:
    """One check: a policy that must be valid, or one expectation."""

    suite: str
    """The file, as given."""
    name: str
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make it fail."""
        return tuple(finding for finding in self.findings if finding.level == "error")


def github(cases: Iterable[Case]) -> str:
    """Workflow commands of GitHub Actions, one per line, which become annotations of a pull request."""
    return "\n".join(_annotation(finding) for case in cases for finding in case.findings)


def _annotation(finding: Finding) -> str:
    """Escaped as the documentation of workflow commands requires."""
    message, file = (
        text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A") for text in (finding.message, finding.file)
    )
    file = file.replace(":", "%3A").replace(",", "%2C")
    place = f"file={file},line={max(finding.line, 1)},col={max(finding.column, 1)}"
    return f"::{finding.level} {place}::{message}"


def sarif(cases: Iterable[Case]) -> str:
    """A SARIF 2.1.0 log with one run, for code scanning."""
    rules = [{"id": rule, "shortDescription": {"text": text}} for rule, text in RULES.items()]
    driver = {"name": "safeflux", "version": __version__, "rules": rules}
    results = [_result(finding) for case in cases for finding in case.findings]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=2)


def _result(finding: Finding) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": {"uri": quote(os.fsencode(finding.file))}}
    if finding.line:
        place["region"] = {"startLine": finding.line, "startColumn": max(finding.column, 1)}
    return {
        "ruleId": finding.rule,
        "ruleIndex": list(RULES).index(finding.rule),
        "level": finding.level,
        "message": {"text": finding.message},
        "locations": [{"physicalLocation": place}],
    }


def junit(cases: Sequence[Case]) -> str:
    """JUnit XML: a suite for each file, a test for each case; warnings are in the suite's output."""
    root = ElementTree.Element("testsuites")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    for number, suite in enumerate(dict.fromkeys(case.suite for case in cases)):
        mine = [case for case in cases if case.suite == suite]
        failed = sum(bool(case.errors) for case in mine)
        about = {"name": suite, "id": number, "package": "safeflux", "timestamp": now, "hostname": "localhost"}
        counts = {"tests": len(mine), "failures": failed, "errors": 0, "time": 0}
        element = _child(root, "testsuite", {**about, **counts})
        _child(element, "properties", {})
        for case in mine:
            test = _child(element, "testcase", {"name": case.name, "classname": suite, "time": 0})
            if case.errors:
                about = {"message": case.errors[0].message, "type": case.errors[0].rule}
                _child(test, "failure", about).text = _xml("\n".join(map(str, case.errors)))
        warnings = [str(finding) for case in mine for finding in case.findings if finding.level == "warning"]
        _child(element, "system-out", {}).text = _xml("\n".join(warnings))
        _child(element, "system-err", {})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="us-ascii", xml_declaration=True).decode()


def _child(parent: ElementTree.Element, tag: str, attributes: Mapping[str, object]) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, {key: _xml(str(value)) for key, value in attributes.items()})


def _xml(text: str) -> str:
    """A string without the characters that XML 1.0 does not allow."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


FORMS: Mapping[str, Callable[[Sequence[Case]], str]] = {"github": github, "sarif": sarif, "junit": junit}
