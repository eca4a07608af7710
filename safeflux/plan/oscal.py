"""Audit logs as OSCAL assessment results, for tools that collect evidence about controls.

Each receipt of the log becomes a result with an observation and a finding for each category; requested and refused
changes between receipts become its assessment log. The same log gives the same document: its UUIDs are derived from the
hashes of the lines. The source is https://github.com/usnistgov/OSCAL/blob/v1.0.6/json/schema/oscal_assessment-results_schema.json.
"""

import logging
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from safeflux.errors import AuditError
from safeflux.plan.receipts import RECEIPT, check_receipt
from safeflux.plan.statement import is_all_off
from safeflux.plan.status import State
from safeflux.policy.schema import Action
from safeflux.policy.validate import suggest

OSCAL = "1.0.6"
"""The version of OSCAL that is written."""
NAMESPACE = "urn:safeflux:oscal"
"""Namespace of the properties that OSCAL does not define."""
_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, NAMESPACE)
_GUARD = "guard"
"""The finding about the guard as a whole."""
_TOKEN = re.compile(r"[^\W\d][\w.-]*")
_REFERENCE = re.compile(r"[!-~]+")

_log = logging.getLogger(__name__)


def make_assessment(
    lines: Sequence[Mapping[str, Any]], *, plan: str | None = None, controls: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return OSCAL assessment results, as plain JSON values.

    Args:
        lines: Lines of an unbroken audit log, the oldest first (`read_line`, `read_last`).
        plan: Reference to the assessment plan; by default the document describes the policies instead.
        controls: Category -> id of the control that it implements. A category without one is its own control; one that
            begins with a digit, which no id may, has `_` before it.

    Raises:
        AuditError: No line holds a receipt, or one lacks a part or contradicts itself; or OSCAL does not allow the
            reference or an id.
    """
    check_references(plan, controls or {})
    if not any(_is_receipt(line) for line in lines):
        raise AuditError("expected at least one line with a receipt, got none; take one: AuditLog.append")
    known = {name: None for line in lines if _is_receipt(line) for name in line["receipt"].get("categories", ())}
    for name in (controls or {}).keys() - known:
        _log.warning("no receipt has the category %r%s", name, suggest(name, known))
    return {"assessment-results": _document(lines, plan, dict(controls or {}))}


def check_references(plan: str | None, controls: Mapping[str, str]) -> None:
    """Refuse what OSCAL does not allow as the plan's reference or as a control's id.

    Raises:
        AuditError: One of them is refused.
    """
    if plan is not None and not _REFERENCE.fullmatch(plan):
        raise AuditError(f"expected a URI reference to the plan, without spaces, got {plan!r}; write a space as %20")
    for name, control in controls.items():
        if not _TOKEN.fullmatch(control):
            raise AuditError(
                f"expected the id of a control for {name}, a letter or _ and then letters, digits and ._-, got "
                f"{control!r}"
            )


def _control(name: str, controls: Mapping[str, str]) -> str:
    return controls.get(name) or (f"_{name}" if name[0].isdigit() else name)


def _document(lines: Sequence[Mapping[str, Any]], plan: str | None, controls: dict[str, str]) -> dict[str, Any]:
    results = list(_results(lines, controls))  # first: it finds lines that lack something
    head = lines[-1]
    resource = _id(head, "plan")
    matter = {
        "uuid": resource,
        "title": "Policies",
        "description": "The policies of the log stand for an assessment plan: each category that is enforced has to be "
        "switched off in the weights.",
    }
    return {
        "uuid": _id(head, "document"),
        "metadata": {
            "title": "Content categories switched off in a model's weights",
            "last-modified": head["receipt"]["time"],
            "version": f"{head['seq']}-{head['sha256'][:12]}",
            "oscal-version": OSCAL,
            "remarks": "Zeros in the weights show what was switched off; they do not prove that it cannot be drawn.",
        },
        "import-ap": {"href": plan or f"#{resource}"},
        "results": results,
        **({} if plan else {"back-matter": {"resources": [matter]}}),
    }


def _results(lines: Iterable[Mapping[str, Any]], controls: dict[str, str]) -> Iterable[dict[str, Any]]:
    """A result for each receipt, with what was logged since the one before; what comes after the last goes with it."""
    entries: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for line in lines:
        if _is_receipt(line):
            if result:
                yield result
            result, entries = _of_line(line, _result, controls, entries), []
        else:
            entries.append(_of_line(line, _entry))
    if entries:
        result.setdefault("assessment-log", {"entries": []})["entries"] += entries
    yield result


def _of_line(line: Mapping[str, Any], make: Callable[..., dict[str, Any]], *more: Any) -> dict[str, Any]:
    """Make something of a line; errors say which."""
    try:
        return make(line, *more)
    except AuditError as error:
        raise AuditError(f"line {line['seq']}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise AuditError(
            f"line {line['seq']}: lacks {error}, so nothing can be made of it; take a new receipt"
        ) from error


def _is_receipt(line: Mapping[str, Any]) -> bool:
    return bool(line["receipt"].get("format") == RECEIPT)


def _result(line: Mapping[str, Any], controls: dict[str, str], entries: list[dict[str, Any]]) -> dict[str, Any]:
    check_receipt(line["receipt"])
    receipt, policy = line["receipt"], line["receipt"]["policy"]
    names = sorted(receipt["categories"])
    selected = [{"control-id": control} for control in dict.fromkeys(_control(name, controls) for name in names)]
    observations = [_observation(line, name) for name in (_GUARD, *names)]
    return {
        "uuid": _id(line, "result"),
        "title": f"{line['action']}: policy {policy['name']}",
        "description": f"Line {line['seq']} of the audit log: {receipt['state']} under the policy {policy['name']}.",
        "start": receipt["time"],
        "end": receipt["time"],
        "props": [
            _prop("line-sha256", line["sha256"]),
            _prop("policy-sha256", policy["sha256"]),
            _prop("masks-sha256", receipt["masks_sha256"]),
            _prop("base-fingerprint", receipt["base"]["fingerprint"]),
        ],
        "local-definitions": {"components": [_component(line)]},
        "reviewed-controls": {"control-selections": [{"include-controls": selected} if selected else {}]},
        **({"assessment-log": {"entries": entries}} if entries else {}),
        "observations": observations,
        "findings": [_finding(line, name, controls) for name in (_GUARD, *names)],
    }


def _component(line: Mapping[str, Any]) -> dict[str, Any]:
    base, versions = line["receipt"]["base"], line["receipt"]["versions"]
    return {
        "uuid": _id(line, "model"),
        "type": "software",
        "title": base["class"],
        "description": f"A transformer of the family {base['family']}, in {', '.join(base['dtypes'])}.",
        "props": [_prop(name, str(version)) for name, version in versions.items() if version],
        "status": {"state": "operational"},
    }


def _observation(line: Mapping[str, Any], name: str) -> dict[str, Any]:
    receipt = line["receipt"]
    props = []
    if name != _GUARD:
        category = receipt["categories"][name]
        props = [_prop("action", category["action"])]
        props += [_prop(f"bits-{key.replace('_', '-')}", str(bits)) for key, bits in category["bits"].items()]
        props += [_prop("mask-sha256", mask["file_sha256"]) for mask in category["masks"]]
    return {
        "uuid": _id(line, f"observation {name}"),
        "title": name,
        "description": "; ".join(receipt["faults"]) or "Every masked weight was read where the model reads it.",
        **({"props": props} if props else {}),
        "methods": ["TEST"],
        "types": ["control-objective"],
        "subjects": [{"subject-uuid": _id(line, "model"), "type": "component"}],
        "collected": receipt["time"],
    }


def _finding(line: Mapping[str, Any], name: str, controls: dict[str, str]) -> dict[str, Any]:
    is_met, reason, text = _status(line["receipt"], name)
    state = {"state": "satisfied" if is_met else "not-satisfied", "reason": reason}
    return {
        "uuid": _id(line, f"finding {name}"),
        "title": name,
        "description": text,
        "target": {"type": "objective-id", "target-id": _control(name, controls), "status": state},
        "related-observations": [{"observation-uuid": _id(line, f"observation {name}")}],
    }


def _status(receipt: Mapping[str, Any], name: str) -> tuple[bool, str, str]:
    """Whether the objective is met, OSCAL's reason, and a description."""
    if name == _GUARD:
        is_met = receipt["state"] == State.GUARDED
        return is_met, "pass" if is_met else "fail", f"The guard is {receipt['state']}."
    category = receipt["categories"][name]
    bits = category["bits"]
    if category["action"] != Action.ENFORCE:
        return False, "other", f"The category is on {category['action']}, so nothing of it is off."
    is_met = is_all_off(bits)
    return is_met, "pass" if is_met else "fail", f"{bits['in_force']} of {bits['requested']} bits are off."


def _entry(line: Mapping[str, Any]) -> dict[str, Any]:
    """A requested or refused change."""
    facts = line["receipt"]
    what = f"{facts.get('change', line['action'])} by {facts.get('by', 'unknown')}"
    reason = facts.get("reason")
    return {
        "uuid": _id(line, "entry"),
        "title": f"{line['action']}: {what}",
        "description": str(reason) if reason else f"Line {line['seq']} of the audit log.",
        "start": facts["time"],
        "props": [_prop("line-sha256", line["sha256"])],
    }


def _prop(name: str, value: str) -> dict[str, str]:
    return {"name": name, "ns": NAMESPACE, "value": value}


def _id(line: Mapping[str, Any], what: str) -> str:
    return str(uuid.uuid5(_SPACE, f"{line['sha256']} {what}"))
