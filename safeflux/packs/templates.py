"""Prompt templates by the kind of concept, for a run without templates of its own. Imports no torch.

Placeholders: `{thing}` or, in a pair, `{first}` and `{second}`; `{style}` for a style. The rest of a prompt must read
as a prompt without the erased word, since it is the anchor `dropped`: `a photo of a dagger on a table` leaves `a photo
on a table`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from string import Formatter

from safeflux.reference.vocabulary import TargetKind


@dataclass(frozen=True)
class Templates:
    """Templates with one thing, and with two."""

    single: tuple[str, ...]
    pair: tuple[str, ...] = ()


BY_KIND: dict[TargetKind, Templates] = {
    "object": Templates(
        single=(
            "a photo of {thing}",
            "a close-up photo of {thing}",
            "a photo of {thing} on a table",
            "a photo of {thing} in a park",
            "a studio photo of {thing}, plain background",
            "a drawing of {thing}",
            "an oil painting of {thing}",
            "a watercolour of {thing}, white paper",
        ),
        pair=(
            "a photo of {first} and {second}",
            "a photo of {first} and {second} in a room",
            "a drawing of {first} and {second}",
        ),
    ),
    "identity": Templates(
        single=(
            "a photo of {thing}",
            "a portrait of {thing}, soft light",
            "a photo of {thing} on a street",
            "a photo of {thing} at a desk",
            "a photo of {thing}, seen from the side",
            "a pencil drawing of {thing}",
            "an oil painting of {thing}",
        ),
        pair=("a photo of {first} and {second}", "a photo of {first} and {second} in a garden"),
    ),
    "style": Templates(
        single=(
            "a picture of {thing} in the style of {style}",
            "a painting of {thing} in the style of {style}",
            "a drawing of {thing} in the style of {style}",
            "a poster with {thing} in the style of {style}",
        ),
        pair=("a picture of {first} and {second} in the style of {style}",),
    ),
}


def placeholders(template: str) -> set[str]:
    """The names of a template's placeholders.

    Raises:
        ValueError: A brace without its partner.

    Examples:
        >>> sorted(placeholders("{thing}, {style} style"))
        ['style', 'thing']
    """
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def drop(template: str, place: str) -> str:
    """A template without one of its placeholders and the word or comma that joined it.

    Examples:
        >>> drop("{first} and {second}, {style} style", "first")
        '{second}, {style} style'
        >>> drop("{first} and {second}, {style} style", "second")
        '{first}, {style} style'
        >>> drop("{thing}, {style} style", "style")
        '{thing}'
        >>> drop("a photo of {thing}", "thing")
        'a photo'
        >>> drop("a picture of {thing} in the style of {style}", "style")
        'a picture of {thing}'
    """
    hole = re.escape(f"{{{place}}}")
    joined = r"(?:\s*,\s*|\s+in the style of\s+|\s+(?:and|with|beside|next to|of|by)\s+)"
    phrase = rf"{hole}(?:\s+style)?"
    out = re.sub(rf"^{phrase}{joined}|{joined}{phrase}|{phrase}", "", template, count=1)
    return out.strip(" ,")


def faults(templates: Templates, slots: set[str], filled: set[str]) -> Iterator[str]:
    """Find the faults of templates, a sentence each.

    Args:
        templates: The templates to check.
        slots: All slots, `thing` among them.
        filled: Those that a category fills: a template without one never shows the concept to erase.
    """
    for texts, things in ((templates.single, {"thing"}), (templates.pair, {"first", "second"})):
        known, needed = slots - {"thing"} | things, filled - {"thing"} | things
        for text in texts:
            try:
                found = placeholders(text)
            except ValueError as error:
                yield f"{text!r}: {error}"
                continue
            if strange := sorted(found - known):
                yield f"{text!r}: no slot fills {{{strange[0]}}}; there are {', '.join(sorted(known))}"
            elif missing := sorted(needed - found):
                yield f"{text!r}: expected {{{missing[0]}}} in it, which a category fills"
