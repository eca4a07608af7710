"""OSCAL assessment results. Against the schema that NIST publishes: tests/cli/test_published_schemas.py."""

import json
import re

import pytest
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.errors import AuditError
from safeflux.evidence.audit import AuditLog, read_unbroken
from safeflux.model.guard import guard
from safeflux.plan.oscal import make_assessment
from safeflux.policy.load import Action, Category, Policy
from tests.helpers.policies import BOTH

CHANGE = {"format": "safeflux-change/1", "time": "2026-11-29T12:00:00+00:00", "change": "put", "by": "operator"}
MIXED = Policy(
    name="mixed",
    categories={"weapons": BOTH.categories["weapons"], "alcohol": Category(action=Action.WARN, masks=("spirits",))},
)


@pytest.fixture
def log(transformer, store, tmp_path):
    """A guard, a change that was asked for and made, and one that was refused."""
    log = AuditLog(tmp_path / "audit.jsonl")
    handle = guard(transformer, BOTH, store=store)
    log.append("guard", handle.receipt())
    log.append("asked", CHANGE)
    handle.swap(MIXED, store=store)
    log.append("put", handle.receipt())
    log.append("refused", CHANGE | {"reason": "no such mask"})
    return log.path


def results_of(document):
    return document["assessment-results"]["results"]


def test_each_receipt_is_a_result_and_each_category_a_finding(log):
    first, second = results_of(make_assessment(read_unbroken(log), controls={"weapons": "si-4"}))
    states = {f["title"]: f["target"]["status"] for f in second["findings"]}
    assert states == {
        "guard": {"state": "satisfied", "reason": "pass"},
        "weapons": {"state": "satisfied", "reason": "pass"},
        "alcohol": {"state": "not-satisfied", "reason": "other"},
    }
    selected = second["reviewed-controls"]["control-selections"][0]["include-controls"]
    assert [each["control-id"] for each in selected] == ["alcohol", "si-4"]
    assert [entry["title"] for entry in second["assessment-log"]["entries"]] == [
        "asked: put by operator",
        "refused: put by operator",
    ]
    known = {each["uuid"] for each in first["observations"]}
    assert {f["related-observations"][0]["observation-uuid"] for f in first["findings"]} == known


def test_the_same_log_gives_the_same_document_and_every_uuid_is_unique(log):
    text = json.dumps(make_assessment(read_unbroken(log)))
    assert json.dumps(make_assessment(read_unbroken(log))) == text
    uuids = re.findall(r'"uuid": "([^"]+)"', text)
    assert len(set(uuids)) == len(uuids)


def test_the_command_prints_it_and_a_broken_log_gives_none(log):
    def run(*words):
        return CliRunner().invoke(main, ["audit", "export", str(log), *words])

    assert len(results_of(json.loads(run("--oscal").stdout))) == 2
    assert len(results_of(json.loads(run("--oscal", "--last", "2").stdout))) == 1
    assert run().exit_code == 2
    for control in ("weapons", "weapons=", "=si-4"):
        wrong = run("--oscal", "--control", control)
        assert (wrong.exit_code, "expected CATEGORY=ID" in wrong.stderr) == (2, True)
    for words, message in (
        (("--control", "weapons=1.2"), "expected the id of a control for weapons, a letter or _ and then"),
        (("--control", "weapons=si 4"), "got 'si 4'"),
        (("--control", "weapons=a", "--control", "weapons=b"), "expected weapons once, got it twice"),
        (("--plan", "my plan.json"), "write a space as %20"),
    ):
        wrong = run("--oscal", *words)
        assert (wrong.exit_code, message in " ".join(wrong.stderr.split())) == (2, True), wrong.stderr
    slip = run("--oscal", "--control", "weapnos=si-4")
    assert (slip.exit_code, "the category 'weapnos'; did you mean 'weapons'?" in slip.stderr) == (0, True)
    assert "at least one line with a receipt" in run("--oscal", "--last", "1").stderr
    log.write_bytes(log.read_bytes().replace(b"GUARDED", b"guarded", 1))
    broken = run("--oscal")
    assert (broken.exit_code, broken.stdout) == (1, "")
    assert "line 1" in broken.stderr
    with pytest.raises(AuditError, match="at least one line"):
        make_assessment([])


def test_a_receipt_that_contradicts_itself_gives_none(log):
    lines = read_unbroken(log)
    lines[0]["receipt"]["faults"] = ["a tensor is not zero"]
    with pytest.raises(AuditError, match="contradicts itself: it is GUARDED, and names a fault"):
        make_assessment(lines)


def test_a_statement_is_made_of_the_last_receipt_though_a_change_was_refused_since(log):
    found = CliRunner().invoke(main, ["audit", "statement", str(log)])
    assert json.loads(found.stdout)["subject"][0]["name"] == "policy mixed"


REQUIRED = {
    "assessment-results": {"uuid", "metadata", "import-ap", "results"},
    "metadata": {"title", "last-modified", "version", "oscal-version"},
    "import-ap": {"href"},
    "results": {"uuid", "title", "description", "start", "reviewed-controls"},
    "reviewed-controls": {"control-selections"},
    "include-controls": {"control-id"},
    "components": {"uuid", "type", "title", "description", "status"},
    "observations": {"uuid", "description", "methods", "collected"},
    "subjects": {"subject-uuid", "type"},
    "findings": {"uuid", "title", "description", "target"},
    "target": {"type", "target-id", "status"},
    "status": {"state"},
    "related-observations": {"observation-uuid"},
    "entries": {"uuid", "start"},
    "props": {"name", "value"},
    "resources": {"uuid"},
}
"""The parts that OSCAL 1.0 requires of each object in the document."""


def objects(document):
    """Every object with the key that it, or its list, stands under."""
    for key, value in document.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                yield key, one
                yield from objects(one)


def test_every_object_has_the_parts_that_oscal_requires(log):
    found = list(objects(make_assessment(read_unbroken(log))))
    assert {key for key, _ in found} >= REQUIRED.keys()
    assert [(key, REQUIRED[key] - one.keys()) for key, one in found if REQUIRED.get(key, set()) - one.keys()] == []
    assert all(one[key] for _, one in found for key in one if isinstance(one[key], list)), "OSCAL allows no empty list"
