"""The changes from one effective policy to another, and whether each tightens or relaxes it. No torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from safeflux.policy.claims import required
from safeflux.policy.schema import Adapters, Origin, Policy, is_looser


class Effect(StrEnum):
    """The direction of a change."""

    TIGHTENS = "tightens"
    RELAXES = "relaxes"


class Verdict(StrEnum):
    """The direction of all changes together."""

    SAME = "same"
    TIGHTENED = "tightened"
    RELAXED = "relaxed"
    MIXED = "mixed"


@dataclass(frozen=True)
class Change:
    """One value that differs between two policies; None where a policy does not have it."""

    key: str
    """As in `Policy.values`; for an entry of a list (masks, allowed adapters), the key of the list and the entry."""
    old: str | float | None
    new: str | float | None
    effect: Effect
    origin: Origin | None
    """Where the new value is written or, if there is none, the old one; None for a default."""

    def __str__(self) -> str:
        """`relaxes  adapters: deny -> allow  shop.yaml:5`."""
        place = f"  {self.origin}" if self.origin else ""
        return f"{self.effect:8}  {self.key}: {_text(self.old)} -> {_text(self.new)}{place}"


def compare(old: Policy, new: Policy) -> list[Change]:
    """Every change from one effective policy to another, in the order of the file format.

    More masks, a tighter action, fewer adapters, a smaller scale for them, a smaller budget and fewer signing keys
    tighten a policy. A child may differ from its parent by the same rules.

    Examples:
        >>> from safeflux import load_policy
        >>> [str(change) for change in compare(load_policy("family"), load_policy("moderate"))][0]
        'relaxes   categories.alcohol: enforce [alcohol] -> nothing  bundled:family.yaml:7'
    """
    changes = [
        *_of_adapters(old, new),
        *_of_scale(old, new),
        *_of_budget(old, new),
        *_of_signatures(old, new),
        *_of_stores(old, new),
        *_of_categories(old, new),
    ]
    return [change for change in changes if change.old != change.new]


def verdict(changes: list[Change]) -> Verdict:
    """The direction of all changes together."""
    effects = {change.effect for change in changes}
    if len(effects) == 2:
        return Verdict.MIXED
    return Verdict.SAME if not effects else Verdict.RELAXED if Effect.RELAXES in effects else Verdict.TIGHTENED


def _of_adapters(old: Policy, new: Policy) -> Iterator[Change]:
    yield _ranked("adapters", old.adapters, new.adapters, old, new)
    if old.adapters is new.adapters is Adapters.ALLOWLIST:
        yield from _of_list("adapter_allowlist", old.adapter_allowlist, new.adapter_allowlist, Effect.RELAXES, old, new)


def _of_scale(old: Policy, new: Policy) -> Iterator[Change]:
    if old.adapters is not Adapters.DENY and new.adapters is not Adapters.DENY:
        key, was, now = "adapter_max_scale", old.adapter_max_scale, new.adapter_max_scale
        before, after = (policy.adapter_max_scale if policy.bounds_scale else None for policy in (old, new))
        yield Change(key, before, after, Effect.RELAXES if now > was else Effect.TIGHTENS, _origin(key, new, old))


def _of_budget(old: Policy, new: Policy) -> Iterator[Change]:
    key, was, now = "budget.max_share_masked", old.budget.max_share_masked, new.budget.max_share_masked
    yield Change(key, was, now, Effect.RELAXES if now > was else Effect.TIGHTENS, _origin(key, new, old))


def _of_signatures(old: Policy, new: Policy) -> Iterator[Change]:
    key, was, now = "signatures.keys", old.signatures.keys, new.signatures.keys
    if was and now:
        yield from _of_list(key, was, now, Effect.RELAXES, old, new)
    else:
        before, after = (f"[{', '.join(keys)}]" if keys else None for keys in (was, now))
        yield Change(key, before, after, Effect.TIGHTENS if now else Effect.RELAXES, _origin(key, new, old))


def _of_stores(old: Policy, new: Policy) -> Iterator[Change]:
    """A store that goes relaxes: its masks may now be other ones, from another commit."""
    yield from _of_list("stores", old.stores, new.stores, Effect.TIGHTENS, old, new)


def _of_categories(old: Policy, new: Policy) -> Iterator[Change]:
    for name in dict.fromkeys([*old.categories, *new.categories]):
        was, now, key = old.categories.get(name), new.categories.get(name), f"categories.{name}"
        if was and now:
            yield _ranked(f"{key}.action", was.action, now.action, old, new)
            yield from _of_list(f"{key}.masks", was.masks, now.masks, Effect.TIGHTENS, old, new)
            erased = required(name, was), required(name, now)
            yield from _of_list(f"{key}.erases", *erased, Effect.TIGHTENS, old, new)
        else:
            before, after = (f"{c.action} [{', '.join(c.masks)}]" if c else None for c in (was, now))
            effect = Effect.TIGHTENS if now else Effect.RELAXES
            yield Change(key, before, after, effect, _origin(f"{key}.masks", new, old))


def _ranked(key: str, was: str, now: str, old: Policy, new: Policy) -> Change:
    effect = Effect.RELAXES if is_looser(now, was) else Effect.TIGHTENS
    return Change(key, str(was), str(now), effect, _origin(key, new, old))


def _of_list(
    key: str, was: tuple[str, ...], now: tuple[str, ...], more: Effect, old: Policy, new: Policy
) -> Iterator[Change]:
    """One change for each entry that came or went; `more` is what an entry that came does."""
    less = Effect.RELAXES if more is Effect.TIGHTENS else Effect.TIGHTENS
    for entry in dict.fromkeys([*was, *now]):
        effect = more if entry not in was else less
        before, after = (entry if entry in entries else None for entries in (was, now))
        yield Change(key, before, after, effect, _origin(key, new, old))


def _origin(key: str, *policies: Policy) -> Origin | None:
    return next((policy.origins[key] for policy in policies if key in policy.origins), None)


def _text(value: Any) -> str:
    return "nothing" if value is None else str(value)


def as_dict(changes: list[Change]) -> Mapping[str, Any]:
    """Plain values, for JSON."""
    return {
        "verdict": str(verdict(changes)),
        "changes": [
            {
                "key": change.key,
                "old": change.old,
                "new": change.new,
                "effect": str(change.effect),
                "file": change.origin.file if change.origin else None,
                "line": change.origin.line if change.origin else None,
            }
            for change in changes
        ],
    }
