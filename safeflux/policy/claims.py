"""Compares what mask files say they erase with what a policy says. Reads no file, and needs no torch.

A mask file states a category and concepts. Its name is arbitrary, so a policy that relied on names alone could enforce
`alcohol` with a copy of the mask of `tobacco`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from safeflux.policy.characters import printable
from safeflux.policy.schema import Category


@dataclass(frozen=True)
class Claim:
    """What one mask file says it erases."""

    mask: str
    """Name of the mask set."""
    path: str
    category: str
    concepts: tuple[str, ...]

    @property
    def words(self) -> frozenset[str]:
        """The names under which a policy may list the mask."""
        return frozenset((self.category, *self.concepts))

    def __str__(self) -> str:
        """`weapons (dagger, bomb)`."""
        return printable(f"{self.category} ({', '.join(self.concepts)})")


class Claims(Protocol):
    """Where claims are found: a store of masks."""

    def claims(self, name: str) -> Sequence[Claim]:
        """The claims of each file of a mask set, for any base model; none if no file has that name."""

    def suggest(self, name: str) -> str:
        """The end of a message about a name that the store does not have."""

    def including(self, addresses: Iterable[str]) -> "Claims":
        """The same with the repositories that a policy names."""


def required(name: str, category: Category) -> tuple[str, ...]:
    """What the masks of a category must erase together: its `erases`, or its own name by default."""
    return category.erases or (name,)


def faults(name: str, category: Category, claims: Sequence[Claim]) -> list[str]:
    """The differences between a category and its mask files; empty if they agree.

    Each file must erase the category or something in its `erases`, and each of these must be erased by a file.

    Args:
        name: Name of the category.
        category: The category.
        claims: The claims of all its mask sets.

    Example:
        >>> claim = Claim("tobacco", "tobacco.safetensors", "tobacco", ("cigarette",))
        >>> faults("alcohol", Category(masks=("tobacco",)), [claim])[0].partition("; ")[0]
        "mask set 'tobacco' erases tobacco (cigarette), not alcohol"
    """
    return strangers(name, category, claims) or _missing(name, category, claims)


def strangers(name: str, category: Category, claims: Sequence[Claim]) -> list[str]:
    """The files that erase something else; used instead of `faults` if some files are not known."""
    wanted = required(name, category)
    or_write = ", ".join(dict.fromkeys(printable(claim.category) for claim in claims))
    return [
        f"mask set {claim.mask!r} erases {claim}, not {' or '.join(wanted)}; use a mask of {' or '.join(wanted)}, or "
        f"write `erases: [{or_write}]`"
        for claim in claims
        if not claim.words & {name, *wanted}
    ]


def _missing(name: str, category: Category, claims: Sequence[Claim]) -> list[str]:
    words = {word for claim in claims for word in claim.words}
    missing = ", ".join(word for word in required(name, category) if word not in words)
    masks, these = ", ".join(category.masks), "; ".join(map(str, claims))
    return [f"none of its masks ({masks}) erases {missing}; they erase {these}"] if missing else []
