"""Packs by name or path: those that come with safeflux, those of the embedded model, and files."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from safeflux.errors import ConfigError
from safeflux.packs.emoji import EMOJI, emoji_pack, emoji_packs
from safeflux.packs.schema import Pack
from safeflux.policy.strict_file import read_strict
from safeflux.policy.validate import suggest

STARTERS = ("character", "brand", "art-style")
"""Bundled packs with made-up names in them: copies of them are edited."""


def bundled_packs() -> list[str]:
    """The names of the packs for real models that come with safeflux."""
    entries = files("safeflux.packs").joinpath("bundled").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def known_packs() -> list[str]:
    """All names: the bundled packs and, as `emoji:CATEGORY`, those of the embedded model."""
    return [*bundled_packs(), *(f"{EMOJI}:{name}" for name in emoji_packs())]


def load_pack(name: str | Path) -> Pack:
    """The pack of a bundled name (`weapons`, or `emoji:weapons` for the embedded model), or of a file.

    Raises:
        ConfigError: There is no such pack, or the file is not valid: every problem with line, column and excerpt.
    """
    text = str(name)
    if isinstance(name, Path) or text.endswith((".yaml", ".yml")) or "/" in text:
        return read_strict(Path(text), text, Pack, Pack.faults)
    if text.startswith(f"{EMOJI}:"):
        return emoji_pack(text.removeprefix(f"{EMOJI}:"))
    if text not in bundled_packs():
        hint = suggest(text, known_packs())
        message = f"pack {text!r}: no bundled pack has this name{hint} (a file's path ends in .yaml)"
        raise ConfigError(message) from FileNotFoundError(text)
    return read_strict(_bundled(text), f"bundled:{text}.yaml", Pack, Pack.faults)


def pack_text(name: str) -> str:
    """The text of a bundled pack, to start one's own from.

    Raises:
        ConfigError: There is no such pack.
    """
    if name not in bundled_packs():
        message = f"pack {name!r}: no bundled pack has this name{suggest(name, bundled_packs())}"
        raise ConfigError(message) from FileNotFoundError(name)
    return _bundled(name).read_text(encoding="utf-8")


def _bundled(name: str) -> Traversable:
    return files("safeflux.packs") / "bundled" / f"{name}.yaml"


def load_packs(names: list[str] | tuple[str, ...]) -> dict[str, Pack]:
    """Several packs by the categories that they make masks for.

    Raises:
        ConfigError: One is not valid, or two are for the same category.
    """
    packs: dict[str, Pack] = {}
    for name in names:
        pack = load_pack(name)
        if pack.name in packs:
            raise ConfigError(f"pack {name}: a second pack for the category {pack.name!r}; expected one for each")
        packs[pack.name] = pack
    return packs
