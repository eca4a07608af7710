"""Receipts as in-toto Statements, for tools that collect evidence about releases and deployments.

Two predicates: in-toto's own test result, which says for each category whether it is in force; and one of this package,
with the base model, the masks, and the rates that the mask files give, each with n and its interval. Sources:
https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and its predicates/test-result.md (v0.1).
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from safeflux.masks.card import rates_of
from safeflux.plan.receipts import check_receipt
from safeflux.plan.status import State
from safeflux.policy.schema import Action

STATEMENT = "https://in-toto.io/Statement/v1"


class Predicate(StrEnum):
    """What a statement says about a receipt; the value is the URI of the type."""

    TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
    GUARD = "urn:safeflux:guard:v1"


def make_statement(receipt: Mapping[str, Any], predicate: Predicate = Predicate.TEST_RESULT) -> dict[str, Any]:
    """Return an in-toto Statement about a receipt, as plain JSON values.

    Its subjects are the policy and the masks that were written, by their sha256.

    Args:
        receipt: `GuardHandle.receipt()`, or a receipt from an audit log.
        predicate: The type of the statement.

    Raises:
        AuditError: It is not a receipt, one of another format, or one that lacks a part or contradicts itself.
    """
    check_receipt(receipt)
    policy = receipt["policy"]
    subjects = [
        _resource(f"policy {policy['name']}", policy["sha256"]),
        _resource(f"masks of policy {policy['name']}", receipt["masks_sha256"]),
    ]
    body = (_test_result if predicate is Predicate.TEST_RESULT else _guard)(receipt)
    return {"_type": STATEMENT, "subject": subjects, "predicateType": str(predicate), "predicate": body}


def _test_result(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """A test for each category, and one for the guard as a whole, with the result of `verify`."""
    passed: list[str] = []
    warned: list[str] = []
    failed: list[str] = []
    categories = sorted(receipt["categories"].items())  # as in a log, so that both give the same statement
    (passed if receipt["state"] == State.GUARDED else failed).append(f"guard: {receipt['state']}")
    for name, category in categories:
        bits = category["bits"]
        test = f"{name}: {bits['in_force']} of {bits['requested']} bits off"
        if category["action"] != Action.ENFORCE:
            warned.append(f"{name}: on {category['action']}, so nothing of it is off")
        else:
            (passed if is_all_off(bits) else failed).append(test)
    policy = receipt["policy"]
    masks = {mask["name"]: mask["file_sha256"] for _, each in categories for mask in each["masks"]}
    return {
        "result": "FAILED" if failed else "WARNED" if warned else "PASSED",
        "configuration": [
            _resource(f"policy {policy['name']}", policy["sha256"]),
            *(_resource(f"mask {name}", digest) for name, digest in masks.items()),
        ],
        "passedTests": passed,
        "warnedTests": warned,
        "failedTests": failed,
    }


def is_all_off(bits: Mapping[str, int]) -> bool:
    """Whether a category of a receipt, by its numbers of bits, has some to switch off, and all of them are."""
    return bits["in_force"] == bits["requested"] > 0


def _guard(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """What is in force, and the measured effect of its masks."""
    return {
        "time": receipt["time"],
        "state": receipt["state"],
        "faults": receipt["faults"],
        "base": receipt["base"],
        "categories": {
            name: {
                "action": category["action"],
                "bits": category["bits"],
                "masks": [_mask(mask) for mask in category["masks"]],
            }
            for name, category in sorted(receipt["categories"].items())
        },
        "versions": receipt["versions"],
        "limits": receipt["limits"],
    }


def _mask(mask: Mapping[str, Any]) -> dict[str, Any]:
    rates = {
        view: {row: {side: rate.to_json() for side, rate in sides.items()} for row, sides in rows.items()}
        for view, rows in rates_of(mask["evaluation"]).items()
    }
    return {**_resource(mask["name"], mask["file_sha256"]), "base_model": mask["base_model"], "rates": rates}


def _resource(name: str, sha256: str) -> dict[str, Any]:
    """A ResourceDescriptor."""
    return {"name": name, "digest": {"sha256": sha256}}
