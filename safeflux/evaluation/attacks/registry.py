"""All attacks by name. A new attack is a class with `@register` in a file that is listed here."""

import difflib
from collections.abc import Sequence
from importlib import import_module

from safeflux.errors import ConfigError
from safeflux.evaluation.attacks.base import Attack, Kind, Level

_FILES = ("rewording", "sampling", "words", "search", "learned", "pictures", "recovery", "finetuning", "rounding")
"""In the order of reports: prompts, embeddings, pictures, weights."""

_REGISTERED: dict[str, type[Attack]] = {}


def register(attack: type[Attack]) -> type[Attack]:
    """Add an attack.

    Raises:
        ValueError: Another has its name.
    """
    if attack.name in _REGISTERED:
        raise ValueError(f"two attacks are called {attack.name!r}")
    _REGISTERED[attack.name] = attack
    return attack


def all_attacks() -> dict[str, Attack]:
    """Name -> attack, in the order of reports."""
    for name in _FILES:
        import_module(f"{__package__}.kinds.{name}")
    kinds, files = list(Kind), {f"{__package__}.kinds.{name}": k for k, name in enumerate(_FILES)}
    places = {one: (kinds.index(one.kind), files.get(one.__module__, len(files))) for one in _REGISTERED.values()}
    ordered = sorted(places, key=places.__getitem__)  # whatever was imported first
    return {attack.name: attack() for attack in ordered}


def find_attacks(names: Sequence[str] = (), level: Level = "full") -> list[Attack]:
    """The attacks of these names or kinds, in the order of reports; all of them without a name.

    Those that a level leaves out have to be asked for by their own names.

    Raises:
        ConfigError: There is none of that name.
    """
    every = all_attacks()
    kinds = {attack.kind.value for attack in every.values()}
    for name in names:
        if name not in every and name not in kinds:
            near = difflib.get_close_matches(name, [*every, *kinds], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join([*kinds, *every])}"
            raise ConfigError(f"attack {name!r}: there is none of that name, nor a kind; {hint}")

    def is_wanted(attack: Attack) -> bool:
        return attack.name in names or (level in attack.levels and (not names or attack.kind.value in names))

    return [attack for attack in every.values() if is_wanted(attack)]
