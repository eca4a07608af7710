"""Expectations of a policy, written in YAML next to it, for CI: they tell editors of the policy what others rely on.

Nothing here loads torch.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from safeflux.policy.characters import printable
from safeflux.policy.check import mask_findings
from safeflux.policy.claims import Claims
from safeflux.policy.diff import Effect, compare
from safeflux.policy.load import load_policy
from safeflux.policy.report import Case, Finding
from safeflux.policy.schema import Adapters, Name, Origin, Policy, Strict, Versioned, is_looser
from safeflux.policy.sources import is_path
from safeflux.policy.starter import known_categories
from safeflux.policy.validate import nearest, read_policy_file, suggest
from safeflux.policy.yaml_reader import Document, PolicyFileError

EXAMPLE = """\
apiVersion: safeflux/v1
kind: PolicyTest
policy: shop.yaml                # a file next to this one, or a bundled policy
expect:
  enforced: [weapons, alcohol]   # these at least
  not_enforced: [horror]         # none of these
  erases: [weapons, dagger]      # categories and concepts, by what the mask files say
  adapters: deny                 # at least as tight
  max_share_masked: 0.05         # at most
  as_tight_as: moderate          # nothing relaxed from that policy
"""
"""A whole file of expectations."""


class Expect(Strict):
    """What others rely on; omitted keys are not checked."""

    enforced: tuple[Name, ...] = Field((), strict=False)
    not_enforced: tuple[Name, ...] = Field((), strict=False)
    erases: tuple[str, ...] = Field((), strict=False)
    adapters: Adapters | None = Field(None, strict=False)
    max_share_masked: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    as_tight_as: str = ""


class PolicyTestFile(Versioned):
    """A file of expectations."""

    kind: Literal["PolicyTest"]
    policy: str
    expect: Expect


@dataclass(frozen=True)
class Outcome:
    """One expectation, its place, and what is wrong with the policy; None if it holds."""

    origin: Origin
    expected: str
    fault: str | None

    def case(self, suite: str) -> Case:
        """The outcome for reports; `suite` is the file of expectations."""
        message = f"{self.expected}: {self.fault}"
        found = (Finding("expectation-failed", self.origin.file, self.origin.line, 0, message),)
        return Case(suite, self.expected, found if self.fault else ())

    def __str__(self) -> str:
        """`FAILED  shop.test.yaml:6: adapters deny: it says allow (shop.yaml:5)`."""
        reason = f": {self.fault}" if self.fault else ""
        return printable(f"{'FAILED' if self.fault else 'ok    '}  {self.origin}: {self.expected}{reason}")


def run_policy_test(path: str | os.PathLike[str], masks: Claims) -> list[Outcome]:
    """Compare a policy with a file of expectations; one outcome for each, and one for what its mask files erase.

    Args:
        path: The file.
        masks: The store in which the policy's masks are looked up.

    Raises:
        PolicyFileError: The file, the policy, or one that it is compared with is not valid, or there are no
            expectations.
    """
    path = Path(path)
    file, document = read_policy_test(path)
    policy = load_policy(_beside(path, file.policy))
    masks = masks.including(policy.stores)
    named = Origin(document.file, document.line(("policy",)))
    wrong = [finding for finding in mask_findings(policy, masks) if finding.level == "error"]
    own = Outcome(named, "masks erase what the policy says", "; ".join(map(str, wrong)) or None)
    return [
        *_outcomes(policy, file.expect, path, document, masks),
        *_of_erased(policy, file.expect, document, masks),
        own,
    ]


def read_policy_test(path: Path) -> tuple[PolicyTestFile, Document]:
    """Read a file of expectations, without the policy.

    Raises:
        PolicyFileError: It is not valid, or has no expectations.
    """
    file, document = read_policy_file(path, str(path), PolicyTestFile)
    if file is None:
        raise PolicyFileError(document.issues)
    if not file.expect.model_fields_set:
        keys = ", ".join(Expect.model_fields)
        raise PolicyFileError([document.issue(("expect",), f"expected at least one of {keys}, got none", key=True)])
    return file, document


def _outcomes(policy: Policy, expect: Expect, path: Path, document: Document, masks: Claims) -> Iterator[Outcome]:
    for k, name in enumerate(expect.enforced):
        yield Outcome(_origin(document, "enforced", k), f"enforced {name}", _unenforced(policy, name))
    for k, name in enumerate(expect.not_enforced):
        yield Outcome(_origin(document, "not_enforced", k), f"not enforced {name}", _enforced(policy, name, masks))
    if expect.adapters:
        is_broken = is_looser(policy.adapters, expect.adapters)
        fault = f"it says {policy.adapters}{_place(policy, 'adapters')}" if is_broken else None
        yield Outcome(_origin(document, "adapters"), f"adapters {expect.adapters}", fault)
    if expect.max_share_masked is not None:
        share, most = policy.budget.max_share_masked, expect.max_share_masked
        fault = f"it allows {share}{_place(policy, 'budget.max_share_masked')}" if share > most else None
        yield Outcome(_origin(document, "max_share_masked"), f"max_share_masked {most}", fault)
    if expect.as_tight_as:
        changes = compare(load_policy(_beside(path, expect.as_tight_as)), policy)
        relaxed = [str(change) for change in changes if change.effect is Effect.RELAXES]
        origin = _origin(document, "as_tight_as")
        yield Outcome(origin, f"as tight as {expect.as_tight_as}", "; ".join(relaxed) or None)


def _of_erased(policy: Policy, expect: Expect, document: Document, masks: Claims) -> Iterator[Outcome]:
    """Whether the files of the enforced masks say they erase each word."""
    names = dict.fromkeys(mask for several in policy.enforced.values() for mask in several)
    claims = {name: masks.claims(name) for name in names}
    words = {word for found in claims.values() for claim in found for word in claim.words}
    unknown = ", ".join(name for name, found in claims.items() if not found)
    for k, word in enumerate(expect.erases):
        missing = f"no store has the masks {unknown} (--store)"
        fault = missing if unknown else f"no enforced mask does{suggest(word, sorted(words))}"
        yield Outcome(_origin(document, "erases", k), f"erases {word}", None if word in words else fault)


def _origin(document: Document, *keys: str | int) -> Origin:
    return Origin(document.file, document.line(("expect", *keys)))


def _enforced(policy: Policy, name: str, masks: Claims) -> str | None:
    """The fault of a category that is enforced; or of a slip, which would never be."""
    if name in policy.enforced:
        return f"it is{_place(policy, f'categories.{name}.action')}"
    known = policy.categories | known_categories()
    if name in known or masks.claims(name) or not (near := nearest(name, known)):
        return None
    return f"no category has this name; did you mean {near!r}?"


def _unenforced(policy: Policy, name: str) -> str | None:
    if name in policy.enforced:
        return None
    if name in policy.categories:
        return f"it says {policy.categories[name].action}{_place(policy, f'categories.{name}.action')}"
    return f"it has no such category{suggest(name, policy.categories)}"


def _place(policy: Policy, key: str) -> str:
    return f" ({policy.origins[key]})" if key in policy.origins else " (default)"


def _beside(path: Path, policy: str) -> str:
    """A bundled policy's name unchanged; a file's path relative to the file of expectations."""
    return str(path.parent / policy) if is_path(policy) else policy
