"""Receipts as in-toto Statements: read by in-toto's own package, which comes with model-signing."""

import copy
import json

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult as InTotoTestResult
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage

from safeflux.errors import AuditError
from safeflux.masks.file import save_masks
from safeflux.model.guard import guard
from safeflux.plan.statement import Predicate, make_statement
from safeflux.policy.load import Action, Category, Policy
from safeflux.rates import Rate
from tests.helpers.policies import BLADES, BOTH


def read(statement):
    """Parse it strictly as in-toto's messages say: an unknown or misspelt member is an error."""
    message = ParseDict(statement, StatementMessage())
    Statement.copy_from_pb(message).validate()
    assert MessageToDict(message) == statement
    return message


def test_a_test_result_is_what_in_toto_reads(transformer, store):
    handle = guard(transformer, BOTH, store=store)
    receipt = handle.receipt()
    statement = make_statement(receipt)
    read(statement)
    result = ParseDict(statement["predicate"], InTotoTestResult())
    assert result.result == "PASSED"
    bits = {name: entry["bits"]["requested"] for name, entry in receipt["categories"].items()}
    expected = ["guard: GUARDED", *(f"{name}: {count} of {count} bits off" for name, count in sorted(bits.items()))]
    assert list(result.passed_tests) == expected
    assert not [*result.warned_tests, *result.failed_tests]
    digests = {each.name: each.digest["sha256"] for each in result.configuration}
    assert digests == {
        "policy both": BOTH.digest,
        **{f"mask {each.name}": each.sha256 for part in handle.plan.categories.values() for each in part.stored},
    }
    assert [each["digest"]["sha256"] for each in statement["subject"]] == [BOTH.digest, receipt["masks_sha256"]]


def test_what_is_not_in_force_fails_and_what_is_not_enforced_warns(transformer, store):
    categories = BLADES.categories | {"alcohol": Category(masks=("spirits",), action=Action.WARN)}
    handle = guard(transformer, Policy(name="part", categories=categories), store=store)
    warned = make_statement(handle.receipt())["predicate"]
    assert warned["result"] == "WARNED"
    assert warned["warnedTests"] == ["alcohol: on warn, so nothing of it is off"]
    saved = transformer.context_embedder.weight.data.clone()
    transformer.context_embedder.weight.data += 1
    failed = make_statement(handle.receipt())
    read(failed)
    assert failed["predicate"]["result"] == "FAILED"
    assert failed["predicate"]["failedTests"][0] == "guard: DEGRADED"
    assert failed["predicate"]["failedTests"][1].startswith("weapons: ")
    transformer.context_embedder.weight.data.copy_(saved)
    handle.undo()
    undone = make_statement(handle.receipt())["predicate"]
    assert undone["failedTests"][0] == "guard: UNGUARDED"
    assert undone["passedTests"] == []


def test_our_predicate_has_rates_with_n_and_intervals(transformer, store, make_masks, make_meta):
    rates = {"found": {"base": Rate(197, 200), "masked": Rate(3, 200)}}
    rows = {row: {side: rate.to_json() for side, rate in sides.items()} for row, sides in rates.items()}
    meta = make_meta(evaluation={"alone": rows, "seed": 1})
    save_masks(store / "tiny-flux" / "blades.safetensors", make_masks(1, ("weight",), 0.02), meta)
    receipt = guard(transformer, BLADES, store=store).receipt()
    statement = make_statement(receipt, Predicate.GUARD)
    assert statement["predicateType"] == "urn:safeflux:guard:v1"
    predicate = statement["predicate"]
    (mask,) = predicate["categories"]["weapons"]["masks"]
    assert mask["rates"] == {"alone": rows}
    assert mask["rates"]["alone"]["found"]["masked"] == {
        "rate": 0.015,
        "interval_95": list(Rate(3, 200).interval),
        "hits": 3,
        "n": 200,
    }
    assert predicate["state"] == "GUARDED"
    assert predicate["limits"] == receipt["limits"]
    Statement.copy_from_pb(ParseDict(statement, StatementMessage())).validate()


def test_what_is_no_receipt_gives_no_statement(transformer, store):
    receipt = guard(transformer, BLADES, store=store).receipt()
    for change in (lambda r: r.pop("format"), lambda r: r.update(format="safeflux-receipt/2")):
        other = copy.deepcopy(receipt)
        change(other)
        with pytest.raises(AuditError, match="expected a receipt"):
            make_statement(other)
    for member in ("policy", "categories", "masks_sha256", "state"):
        with pytest.raises(AuditError, match=f"the receipt lacks '{member}'"):
            make_statement({key: value for key, value in receipt.items() if key != member})


def edited(path, value):
    """Puts a value into a receipt, at a dotted path."""

    def change(receipt):
        *parents, last = (int(name) if name.isdigit() else name for name in path.split("."))
        for name in parents:
            receipt = receipt[name]
        receipt[last] = value

    return change


@pytest.fixture
def taken(transformer, store):
    """A receipt of a guarded model, as a log gives it back."""
    return json.loads(json.dumps(guard(transformer, BOTH, store=store).receipt()))


EDITS = (
    edited("faults", ["tensor 'x' is not zero"]),
    edited("faults", "none"),
    edited("state", "guarded"),
    edited("categories", {}),
    edited("categories", []),
    edited("categories.weapons.bits.in_force", True),
    edited("categories.weapons.bits.in_force", "7"),
    edited("categories.weapons.bits", {"requested": 10**9, "in_force": 10**9}),
    edited("categories.weapons.bits.in_force", 0),
    edited("categories.weapons.action", "warn"),
    edited("categories.weapons.action", "none"),
    edited("categories.weapons.masks", []),
    edited("categories.weapons.masks.0.name", "flowers"),
    edited("categories.weapons.masks.0.file_sha256", "zz"),
    edited("categories.weapons.masks.0.masks_sha256", ["a"]),
    edited("masks_sha256", "A" * 64),
    edited("policy.sha256", None),
    edited("policy.sha256", "0" * 64),
    edited("policy.effective", {}),
    edited("policy.effective", {"adapters": {}, "adapters.x": 1}),
    edited("policy.effective", {"adapters": 1, "adapters.x": 1}),
    edited("policy.effective.adapters", "allow"),
    edited("adapters", {"proj_out": {"adapters": ["a"], "fused": [], "scales": {}}}),
    edited("sites", {}),
    edited("shares", {}),
    edited("base.fingerprint", ""),
    edited("time", "yesterday"),
    edited("time", "2026-11-29T12:00:00"),
    edited("limits", ""),
)


@pytest.mark.parametrize("predicate", Predicate)
def test_a_receipt_that_was_edited_gives_no_statement(taken, predicate):
    assert make_statement(taken, predicate)
    for change in EDITS:
        receipt = copy.deepcopy(taken)
        change(receipt)
        with pytest.raises(AuditError, match=r"(?i)receipt.*take a new one$"):
            make_statement(receipt, predicate)
