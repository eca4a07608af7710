"""Who may do what: tokens, stored as sha256 digests, with the policies that each may request.

    apiVersion: safeflux/v1
    kind: Tokens
    tokens:
      - {name: kids-app, sha256: 9f86..., policies: [family]}
      - {name: operator, sha256: 2c26..., operator: true}

The file holds only digests, so reading it does not give access. Without a file, anyone who can reach the port may draw
under any policy, and nobody may change policies unless SAFEFLUX_TOKEN is set to the operator's token.
"""

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from safeflux.errors import ConfigError
from safeflux.policy.schema import Digest, Name, Strict, Versioned
from safeflux.policy.strict_file import read_strict
from safeflux.policy.yaml_reader import Loc
from safeflux.serve.problems import ProblemError

_LEAST = 16
"""Minimum length of the operator's token, in characters."""


class TokenEntry(Strict):
    """One token of the file."""

    name: Name = Field(description="What the audit log calls its owner.")
    sha256: Digest = Field(description="The sha256 of the token, in hexadecimal.")
    policies: tuple[Name, ...] | None = Field(
        None, strict=False, min_length=1, description="Those it may ask for, its default first; without, all."
    )
    operator: bool = Field(False, description="May see receipts and the log, and change policies.")


class TokenFile(Versioned):
    """The whole file."""

    kind: Literal["Tokens"] = Field(description="Always Tokens.")
    tokens: tuple[TokenEntry, ...] = Field(strict=False, min_length=1, description="One entry a client.")


@dataclass(frozen=True)
class Caller:
    """The caller of a request."""

    name: str
    policies: tuple[str, ...] | None = None
    """The policies it may request, its default first; None for all."""
    is_operator: bool = False

    def may(self, policy: str) -> bool:
        """Whether it may request a policy."""
        return self.is_operator or self.policies is None or policy in self.policies


ANYONE = Caller("anyone")
"""The caller of a service without a token file."""


class Access:
    """The tokens of a service."""

    def __init__(self, entries: Iterable[TokenEntry] = (), operator: str = "") -> None:
        """Index the tokens.

        Args:
            entries: Of the file; without any, everyone may draw.
            operator: The operator's token in plain text, besides those of the file; empty for none.

        Raises:
            ConfigError: The operator's token is too short.
        """
        entries = tuple(entries)
        if operator and len(operator) < _LEAST:
            raise ConfigError(
                f"SAFEFLUX_TOKEN: expected at least {_LEAST} characters, got {len(operator)}; "
                "`safeflux serve --new-token operator` makes one"
            )
        self.is_open = not entries
        """Whether everyone may draw."""
        self._callers = {entry.sha256: Caller(entry.name, entry.policies, entry.operator) for entry in entries}
        if operator:
            self._callers[_sha256(operator)] = Caller("operator", None, True)

    @property
    def has_operator(self) -> bool:
        """Whether anybody can change policies."""
        return any(caller.is_operator for caller in self._callers.values())

    @property
    def named_policies(self) -> set[str]:
        """All policies that tokens name."""
        return {name for caller in self._callers.values() for name in caller.policies or ()}

    def caller(self, authorization: str) -> Caller:
        """The caller that this header authenticates; ANYONE if no token is needed.

        Raises:
            ProblemError: 401: No token where one is needed, or one that is not known.
        """
        scheme, _, token = authorization.partition(" ")
        if not authorization and self.is_open:
            return ANYONE
        known = self._callers.get(_sha256(token.strip())) if scheme.lower() == "bearer" else None
        if known is None:
            raise ProblemError(
                401, "expected the header `authorization: Bearer TOKEN`, with a known token", code="token"
            )
        return known

    def operator(self, authorization: str) -> Caller:
        """The operator that this header authenticates.

        Raises:
            ProblemError: 401 for no known token, 403 for another's.
        """
        caller = self.caller(authorization)
        if caller is ANYONE:
            raise ProblemError(401, "expected the header `authorization: Bearer TOKEN`, of an operator", code="token")
        if not caller.is_operator:
            raise ProblemError(403, f"the token of {caller.name!r} is not an operator's", code="operator")
        return caller


def read_tokens(path: Path) -> tuple[TokenEntry, ...]:
    """The entries of a token file.

    Raises:
        ConfigError: It cannot be read or is not valid: each problem with file, line, column and an excerpt.
    """

    def faults(file: TokenFile) -> Iterator[tuple[Loc, str]]:
        for key in ("name", "sha256"):
            seen: set[str] = set()
            for number, entry in enumerate(file.tokens):
                value = getattr(entry, key)
                if value in seen:
                    yield ("tokens", number, key), f"another token has this {key} already"
                seen.add(value)

    return read_strict(path, str(path), TokenFile, faults).tokens


def new_token(name: str) -> tuple[str, str]:
    """A new token, and its line for the file."""
    token = secrets.token_urlsafe(32)
    return token, f"  - {{name: {name}, sha256: {_sha256(token)}, policies: [strict]}}"


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
