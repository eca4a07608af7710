"""Expectations of a policy, written in YAML beside it, for CI: whoever edits the policy learns what was relied on.

Nothing here loads torch.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from safeflux.policy import is_path, load_policy
from safeflux.policydiff import Effect, compare
from safeflux.policyfile import read_policy_file, suggest
from safeflux.policyschema import Adapters, Name, Origin, Policy, Strict, Versioned, is_looser
from safeflux.yamlfile import Document, PolicyFileError

EXAMPLE = """\
apiVersion: safeflux/v1
kind: PolicyTest
policy: shop.yaml                # a file beside this one, or a bundled policy
expect:
  enforced: [weapons, alcohol]   # these at least
  adapters: deny                 # as tight at least
  max_share_masked: 0.05         # this at most
  as_tight_as: moderate          # nothing relaxed from that policy
"""
"""A whole file of expectations."""


class Expect(Strict):
    """What a policy is relied on for; what is left out is not looked at."""

    enforced: tuple[Name, ...] = Field((), strict=False)
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
    """One expectation, where it stands, and what is wrong with the policy; None if it holds."""

    origin: Origin
    expected: str
    fault: str | None

    def __str__(self) -> str:
        """`FAILED  shop.test.yaml:6: adapters deny: it says allow (shop.yaml:5)`."""
        told = f": {self.fault}" if self.fault else ""
        return f"{'FAILED' if self.fault else 'ok    '}  {self.origin}: {self.expected}{told}"


def run_policy_test(path: str | os.PathLike[str]) -> list[Outcome]:
    """Hold a policy against a file of expectations; one outcome for each.

    Raises:
        PolicyFileError: The file, the policy, or one that it is compared with is not valid, or nothing is expected.
    """
    path = Path(path)
    file, document = read_policy_file(path, str(path), PolicyTestFile)
    if file is None:
        raise PolicyFileError(document.issues)
    if not file.expect.model_fields_set:
        keys = ", ".join(Expect.model_fields)
        raise PolicyFileError([document.issue(("expect",), f"nothing is expected; known: {keys}", key=True)])
    policy = load_policy(_beside(path, file.policy))
    return list(_outcomes(policy, file.expect, path, document))


def _outcomes(policy: Policy, expect: Expect, path: Path, document: Document) -> Iterator[Outcome]:
    def origin(*keys: str | int) -> Origin:
        return Origin(document.file, document.line(("expect", *keys)))

    for k, name in enumerate(expect.enforced):
        yield Outcome(origin("enforced", k), f"enforced {name}", _unenforced(policy, name))
    if expect.adapters:
        is_broken = is_looser(policy.adapters, expect.adapters)
        fault = f"it says {policy.adapters}{_place(policy, 'adapters')}" if is_broken else None
        yield Outcome(origin("adapters"), f"adapters {expect.adapters}", fault)
    if expect.max_share_masked is not None:
        share = policy.budget.max_share_masked
        fault = f"it allows {share}{_place(policy, 'budget.max_share_masked')}"
        is_more = share > expect.max_share_masked
        yield Outcome(
            origin("max_share_masked"), f"max_share_masked {expect.max_share_masked}", fault if is_more else None
        )
    if expect.as_tight_as:
        changes = compare(load_policy(_beside(path, expect.as_tight_as)), policy)
        relaxed = [str(change) for change in changes if change.effect is Effect.RELAXES]
        yield Outcome(origin("as_tight_as"), f"as tight as {expect.as_tight_as}", "; ".join(relaxed) or None)


def _unenforced(policy: Policy, name: str) -> str | None:
    if name in policy.enforced:
        return None
    if name in policy.categories:
        return f"it says {policy.categories[name].action}{_place(policy, f'categories.{name}.action')}"
    return f"it has no such category{suggest(name, policy.categories)}"


def _place(policy: Policy, key: str) -> str:
    return f" ({policy.origins[key]})" if key in policy.origins else " (default)"


def _beside(path: Path, policy: str) -> str:
    """A bundled policy's name as it is; a file's path from where the expectations stand."""
    return str(path.parent / policy) if is_path(policy) else policy
