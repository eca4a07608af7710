r"""Characters that make a policy file mean something else than a reader sees: odd line breaks and invisible spaces.

A line break that an editor does not show ends a comment, so `# reviewed <U+2028>adapters: allow` would be one line to a
reader and two to a parser. A no-break space is not indentation. Neither is allowed anywhere in a file; in double
quotes such a character can be written as an escape, "\u00a0".
"""

import unicodedata
from collections.abc import Iterator

_BREAKS = {"\r": "CARRIAGE RETURN alone", "\v": "LINE TABULATION", "\f": "FORM FEED", "\x85": "NEXT LINE"}
_BREAKS |= {"\u2028": "LINE SEPARATOR", "\u2029": "PARAGRAPH SEPARATOR"}


def unwanted(text: str) -> Iterator[tuple[int, str]]:
    """Yield the index of each such character, with its name and the remedy."""
    for index, char in enumerate(text):
        if " " < char <= "~" or char in " \n":
            continue
        if char in _BREAKS:
            if char != "\r" or text[index + 1 : index + 2] != "\n":
                yield index, f"{_code(char)} {_BREAKS[char]} is a line break only to some; end lines with LF or CRLF"
            continue
        kind = unicodedata.category(char)
        if kind == "Zs":
            yield index, f"{_code(char)} {unicodedata.name(char)} only looks like a space; write a plain space"
        elif kind == "Cf":
            yield index, f"{_code(char)} {unicodedata.name(char, 'unnamed')} cannot be seen; remove it"


def without(text: str, indices: set[int]) -> str:
    """The text with each of these characters replaced by a plain space, so that all positions are kept."""
    return "".join(" " if index in indices else char for index, char in enumerate(text)) if indices else text


def encoding_fault(data: bytes) -> str | None:
    """A message if the bytes are UTF-16 or UTF-32, which some editors save; None if not."""
    is_wide = data.startswith((b"\xff\xfe", b"\xfe\xff")) or data[:4].count(0) >= 2
    return "this is UTF-16 or UTF-32 text; save the file as UTF-8" if is_wide else None


def printable(text: str) -> str:
    r"""A text from a file, or a file's name, for a message of one line.

    A line break in it could begin a line of its own, such as a command of a CI system.

    Example:
        >>> printable("a\n::error::b")
        'a�::error::b'
    """
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _code(char: str) -> str:
    return f"U+{ord(char):04X}"
