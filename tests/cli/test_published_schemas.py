"""Output of the commands, checked against the schemas that others publish. `SAFEFLUX_SCHEMAS` names a folder with them.

They are not part of this repository. CONTRIBUTING.md says where each comes from.
"""

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.evidence.audit import AuditLog
from safeflux.model.guard import guard
from safeflux.policy.load import Action, Category, Policy
from tests.helpers.policies import BOTH

pytestmark = pytest.mark.schemas

HEAD = "apiVersion: safeflux/v1\nkind: Policy\nname: mine\n"
GOOD = HEAD + "extends: strict\n"
TEST = "apiVersion: safeflux/v1\nkind: PolicyTest\npolicy: good.yaml\nexpect:\n  enforced: [weapons, gore]\n"
ODD = {
    "good.yaml": GOOD,
    "a b&<c>.yaml": GOOD + "adpaters: deny\nbudget: {max_share_masked: 3}\n",
    "x:y%z#?.yaml": GOOD + '"a\\x1b<&\\u0007\U0001f600]]>": 1\n',
    "\u65e5\u672c \U0001f600.yaml": "\ta: [\n",
    "line\nbreak.yaml": HEAD + "categories:\n  weapons: {masks: [gone]}\n",
    os.fsdecode(b"\xff\xfe.yaml"): "name: \udc80".encode("utf-8", "surrogateescape").decode("latin-1"),
    "  lead.yaml": "",
    "good.test.yaml": TEST,
    "odd.test.yaml": TEST + '  erases: ["100%<&>: \U0001f600", "x\\n::error::"]\n',
    "bad.test.yaml": TEST.replace("[weapons, gore]", "weapons"),
}
"""File names and texts that need escaping, and each kind of finding."""
COMMANDS = (
    "check .",
    "check empty",
    "check nowhere.yaml good.yaml",
    "check good.yaml",
    "check strict moderate --store store",
    "check -",
    "test good.test.yaml",
    "test odd.test.yaml bad.test.yaml nowhere.yaml",
)


def schema(name):
    folder = os.environ.get("SAFEFLUX_SCHEMAS")
    if not folder:
        pytest.fail("SAFEFLUX_SCHEMAS names no folder with the published schemas (see CONTRIBUTING.md)")
    return (Path(folder) / name).read_text(encoding="utf-8")


def json_errors(name, documents):
    """What jsonschema finds, formats such as date-time and uri included."""
    import jsonschema

    # Python's `re` has no \p: letters and numbers by what it has.
    text = schema(name).replace("\\\\p{L}", r"[^\\W\\d_]").replace("\\\\p{N}", r"\\d")
    checker = jsonschema.Draft7Validator.FORMAT_CHECKER
    validator = jsonschema.Draft7Validator(json.loads(text), format_checker=checker)
    return [
        (what, "/".join(map(str, error.absolute_path)), error.message[:200])
        for what, document in documents.items()
        for error in validator.iter_errors(document)
    ]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in ODD.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "weapons.safetensors").write_bytes(b"damaged")

    def outputs(form):
        found = {}
        for words in COMMANDS:
            result = CliRunner().invoke(main, ["policy", *words.split(), "--format", form], input="a: [\n")
            assert isinstance(result.exception, SystemExit | None), words
            assert result.exit_code in (0, 1, 3), words
            found[words] = result.stdout
        return found

    return outputs


def test_sarif(run):
    logs = {words: json.loads(text) for words, text in run("sarif").items()}
    assert {bool(log["runs"][0]["results"]) for log in logs.values()} == {True, False}
    assert json_errors("sarif-schema-2.1.0.json", logs) == []
    broken = {"broken": logs["check ."] | {"version": "2.1"}}
    assert json_errors("sarif-schema-2.1.0.json", broken)


@pytest.mark.parametrize("name", ["JUnit.xsd", "junit-10.xsd"])
def test_junit(run, name):
    """Apache Ant's, and the stricter one of Jenkins' plugin."""
    import xmlschema

    text = schema(name)
    validator = xmlschema.XMLSchema(text)
    outputs = run("junit")
    errors = {words: [str(e.reason) for e in validator.iter_errors(xml)] for words, xml in outputs.items()}
    assert {words: found for words, found in errors.items() if found} == {}
    assert not validator.is_valid(outputs["check ."].replace("tests=", "test=", 1))


CHANGE = {"format": "safeflux-change/1", "time": "2026-11-29T12:00:00+05:30", "change": "put", "by": "an operator"}
WARNED = Category(action=Action.WARN, masks=("spirits",), erases=("alcohol",))
POLICIES = (
    BOTH,
    Policy(name="18", categories={"18": Category(masks=("blades",), erases=("weapons",))}),
    Policy(name="mixed", categories={"2026": WARNED, "weapons": BOTH.categories["weapons"]}),
)


@pytest.fixture
def log(transformer, store, tmp_path):
    """Each state of a model, and changes whose texts have what OSCAL's strings may not have."""
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("asked", CHANGE)
    handle = guard(transformer, POLICIES[0], store=store)
    log.append("guard", handle.receipt())
    for policy in POLICIES[1:]:
        handle.swap(policy, store=store)
        log.append("swap", handle.receipt())
    for by, reason in (("", ""), (" a\nb ", " two\nlines\t\n"), ("\u65e5\u672c", None)):
        log.append("refused", CHANGE | {"by": by, "reason": reason})
    log.append("an odd\naction ", CHANGE)
    handle.swap(BOTH, store=store)
    transformer.context_embedder.weight.data += 1
    log.append("verify", handle.receipt())
    transformer.context_embedder.weight.data -= 1
    handle.undo()
    log.append("undo", handle.receipt())
    return log.path


def test_oscal(log):
    documents = {}
    for words in ("", "--plan plan.json --control weapons=si-4", "--last 1", "--last 3"):
        result = CliRunner().invoke(main, ["audit", "export", str(log), "--oscal", *words.split()])
        assert result.exit_code == 0, result.output
        documents[words] = json.loads(result.stdout)
    assert json_errors("oscal_assessment-results_schema.json", documents) == []
    (first, *_) = documents[""]["assessment-results"]["results"]
    assert re.fullmatch(r"[0-9a-f-]{36}", first.pop("uuid"))
    assert json_errors("oscal_assessment-results_schema.json", documents)
