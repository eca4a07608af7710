"""Whether a receipt is one: each part of its own form, and none that contradicts another one.

A receipt that was edited by hand must not become evidence. This finds what does not fit together; whether a receipt
that fits is the one that was taken, a log with its signature shows.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from safeflux.errors import AuditError
from safeflux.plan.status import State
from safeflux.policy.schema import Action, Adapters, Digest, Name, Policy

RECEIPT = "safeflux-receipt/1"
"""The format of receipts."""
_Text = Annotated[str, Field(min_length=1)]


def _as_time(value: object) -> object:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Amount(_Form):
    requested: int = Field(ge=0)
    in_force: int = Field(ge=0)


class _Share(_Form):
    masked: int = Field(ge=0)
    total: int = Field(ge=0)


class _Mask(_Form):
    name: _Text
    file_sha256: Digest
    masks_sha256: Digest
    base_model: str
    evaluation: dict[str, Any]


class _Category(_Form):
    action: Annotated[Action, Field(strict=False)]
    bits: _Amount
    masks: list[_Mask]


class _Asked(_Form):
    name: Name
    sha256: Digest


class _Policy(_Asked):
    effective: dict[str, Any]


class _Base(_Form):
    fingerprint: _Text


class _Receipt(_Form):
    time: Annotated[AwareDatetime, BeforeValidator(_as_time)]
    state: Annotated[State, Field(strict=False)]
    faults: list[_Text]
    base: _Base
    adapters: dict[str, Any]
    policy: _Policy
    standing_policies: list[_Asked]
    masks_sha256: Digest
    categories: dict[Name, _Category]
    sites: dict[str, _Amount]
    shares: dict[str, _Share]
    versions: dict[str, str | None]
    limits: _Text


_FORM = TypeAdapter(_Receipt)


def check_receipt(receipt: Mapping[str, Any]) -> None:
    """Make sure that a receipt is whole and does not contradict itself.

    Args:
        receipt: `GuardHandle.receipt()`, or a receipt from an audit log.

    Raises:
        AuditError: It is none, lacks a part, has one of another form, or says one thing here and another there.
    """
    if receipt.get("format") != RECEIPT:
        raise AuditError(f"format: expected a receipt ({RECEIPT}), got {receipt.get('format')!r}")
    try:
        found = _FORM.validate_python(dict(receipt))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise AuditError(f"the receipt lacks {where!r}, so nothing can be made of it; take a new one") from error
        got = repr(first["input"])
        got = f"{got[:80]}..." if len(got) > 80 else got
        raise AuditError(f"the receipt's {where}: {first['msg']}, got {got}; take a new one") from error
    if (fault := next(_contradictions(found), None)) is not None:
        raise AuditError(f"the receipt contradicts itself: {fault}; it was edited, or damaged. Take a new one")


def _contradictions(receipt: _Receipt) -> Iterator[str]:
    yield from _of_the_policy(receipt)
    digests: dict[str, str] = {}
    for name, category in receipt.categories.items():
        bits = category.bits
        if bits.in_force > bits.requested:
            yield f"{name} has {bits.in_force} bits off of {bits.requested} that are requested"
        for mask in category.masks:
            if digests.setdefault(mask.name, mask.file_sha256) != mask.file_sha256:
                yield f"the mask {mask.name!r} has two digests"
    asked, masked = (
        sum(site.requested for site in receipt.sites.values()),
        sum(each.masked for each in receipt.shares.values()),
    )
    if asked != masked:
        yield f"its sites ask for {asked} bits, its shares for {masked}"
    if (most := max((each.bits.requested for each in receipt.categories.values()), default=0)) > asked:
        yield f"a category asks for {most} bits, all sites for {asked}"
    if receipt.state is State.GUARDED:
        yield from _of_a_guard(receipt)
    elif receipt.state is not State.UNGUARDED and not receipt.faults:
        yield f"it is {receipt.state}, and names no fault"


def _of_the_policy(receipt: _Receipt) -> Iterator[str]:
    """What differs between the policy's values, its digest and the categories."""
    asked = receipt.policy
    try:
        policy = Policy.model_validate(_nested(asked.effective) | {"name": asked.name})
    except (ValidationError, TypeError, AttributeError) as error:
        yield f"policy.effective is no policy ({str(error).splitlines()[0]})"
        return
    if policy.digest != asked.sha256:
        yield "policy.sha256 is not the digest of policy.effective"
    then = {
        name: (each.action, sorted(mask.partition("@")[0] for mask in each.masks))
        for name, each in policy.categories.items()
    }
    now = {name: (each.action, sorted(mask.name for mask in each.masks)) for name, each in receipt.categories.items()}
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            yield f"category {name!r} is another one than in policy.effective"


def _of_a_guard(receipt: _Receipt) -> Iterator[str]:
    """What cannot be where a policy is in force."""
    if receipt.faults:
        yield f"it is GUARDED, and names a fault ({receipt.faults[0][:80]})"
    enforced = {name: each.bits for name, each in receipt.categories.items() if each.action is Action.ENFORCE}
    if not enforced:
        yield "it is GUARDED, and enforces no category"
    for name, bits in (*enforced.items(), *receipt.sites.items()):
        if not bits.in_force == bits.requested > 0:
            yield f"it is GUARDED, and {bits.in_force} of {bits.requested} bits of {name} are off"
    if receipt.adapters and receipt.policy.effective.get("adapters") == Adapters.DENY:
        yield "it is GUARDED, and has adapters though the policy says `adapters: deny`"


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted keys as the file format has them."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        *path, leaf = key.split(".")
        part = found
        for name in path:
            part = part.setdefault(name, {})
        part[leaf] = tuple(value) if isinstance(value, list) else value
    return found
