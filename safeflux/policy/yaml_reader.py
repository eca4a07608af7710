"""A small strict YAML reader that records the position of every value, so that errors can point at line and column.

Policies need mappings, lists and plain values, nothing else. Duplicate keys, anchors, aliases, tags, directives, a
second document, NUL, odd line breaks, invisible characters, and files that are too large or nested too deep are
refused, because each can make a file mean something else than its reader sees. Plain values follow YAML 1.2's core
schema, so `no` and `on` are strings.

All problems are collected and reported together. This module knows nothing about policies and imports no torch.
"""

from dataclasses import dataclass, field
from typing import IO, Any, Literal, Protocol

import yaml

from safeflux.errors import PolicyError
from safeflux.policy.characters import encoding_fault, printable, unwanted, without
from safeflux.policy.values import resolve
from safeflux.policy.yaml_errors import explain

MAX_BYTES = 64 * 1024
MAX_DEPTH = 8
_MAX_SHOWN = 50
_SNIPPET_WIDTH = 110
_WHY: dict[type[Exception], str] = {FileNotFoundError: "does not exist", IsADirectoryError: "is a folder, not a file"}

Loc = tuple[str | int, ...]
"""The path to a value: keys of mappings and indices of lists, from the top."""


@dataclass(frozen=True, order=True)
class Issue:
    """One problem at one place in a file. Line and column count from 1; line 0 means the file as a whole."""

    file: str
    line: int
    column: int
    message: str
    snippet: str = ""
    width: int = 1

    def __str__(self) -> str:
        """The problem as `file:line:column: message`, with the line and a caret under it if there is one."""
        place = f"{printable(self.file)}:{self.line}:{self.column}" if self.line else printable(self.file)
        head = f"{place}: {self.message}"
        if not self.snippet:
            return head
        start = max(0, self.column - 1 - _SNIPPET_WIDTH // 2) if len(self.snippet) > _SNIPPET_WIDTH else 0
        shown = printable(self.snippet[start : start + _SNIPPET_WIDTH])
        indent = self.column - 1 - start
        caret = "^" * max(1, min(self.width, len(shown) - indent))
        number = str(self.line)
        return f"{head}\n  {number} | {shown}\n  {' ' * len(number)} | {' ' * indent}{caret}"

    def as_dict(self) -> dict[str, str | int]:
        """The problem for `--json`."""
        return {"file": self.file, "line": self.line, "column": self.column, "message": self.message}


class PolicyFileError(PolicyError):
    """A policy file with problems; `issues` holds all of them, in the order of the file."""

    def __init__(self, issues: list[Issue]) -> None:
        self.issues = tuple(sorted(set(issues)))
        count = len(self.issues)
        shown = [str(issue) for issue in self.issues[:_MAX_SHOWN]]
        if count > _MAX_SHOWN:
            shown.append(f"... and {count - _MAX_SHOWN} more")
        super().__init__("\n".join(shown if count == 1 else [f"the policy has {count} errors", *shown]))


@dataclass
class Document:
    """A file's value, and the position of each of its parts.

    `values` and `keys` map a `Loc` to (line, column, width), all from 1. `broken` holds the places whose value could
    not be read, so that the schema does not report them a second time.
    """

    file: str
    lines: list[str]
    value: Any = None
    values: dict[Loc, tuple[int, int, int]] = field(default_factory=dict)
    keys: dict[Loc, tuple[int, int, int]] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)
    broken: list[Loc] = field(default_factory=list)

    def issue(self, loc: Loc, message: str, *, key: bool = False) -> Issue:
        """An issue at `loc` (at its key if `key`), or at the nearest parent that is in the file."""
        if key and loc in self.keys:
            return self._issue(self.keys[loc], message)
        while loc not in self.values:
            loc = loc[:-1]
        return self._issue(self.values[loc], message)

    def line(self, loc: Loc) -> int:
        """The line at which the value of `loc` starts."""
        return self.values[loc][0]

    def is_broken(self, loc: Loc) -> bool:
        """Whether `loc` is at or under a place that could not be read."""
        return any(loc[: len(place)] == place for place in self.broken)

    def report(self, mark: yaml.Mark, message: str, width: int = 1) -> None:
        """Record a problem at a mark of the YAML scanner, whose lines and columns count from 0."""
        self.issues.append(self.at(mark.line + 1, mark.column + 1, message, width))

    def _issue(self, place: tuple[int, int, int], message: str) -> Issue:
        line, column, width = place
        return self.at(line, column, message, width)

    def at(self, line: int, column: int, message: str, width: int = 1) -> Issue:
        """An issue at a line and column, both from 1."""
        snippet = self.lines[line - 1] if line <= len(self.lines) else ""
        return Issue(self.file, line, column, message, snippet, width)


class Readable(Protocol):
    """A path, or an entry of `importlib.resources`."""

    def open(self, mode: Literal["rb"]) -> IO[bytes]: ...  # noqa: D102


def read_document(source: Readable, file: str) -> Document:
    """Read and parse a file; `file` is its name in messages.

    Raises:
        PolicyFileError: The file cannot be read, is too large, or is not UTF-8 text. Problems in the YAML are kept in
            the document's `issues`, so that the caller can report them together with those of the schema.
    """
    try:
        with source.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise PolicyFileError([Issue(file, 0, 0, _WHY.get(type(error), f"cannot be read: {error}"))]) from error
    return parse_document(data, file)


def parse_document(data: bytes, file: str) -> Document:
    """Parse the bytes of one file.

    Raises:
        PolicyFileError: Larger than `MAX_BYTES`, not UTF-8, or with a NUL byte.
    """
    if len(data) > MAX_BYTES:
        raise PolicyFileError([Issue(file, 0, 0, f"expected at most {MAX_BYTES} bytes, got more; is this the file?")])
    if fault := encoding_fault(data):
        raise PolicyFileError([Issue(file, 1, 1, fault)])
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        fault = f"byte {data[error.start]:#04x} is not UTF-8 text; save the file as UTF-8"
        raise PolicyFileError([Issue(file, line, 1, fault)]) from error
    if (at := text.find("\0")) >= 0:
        raise PolicyFileError([Issue(file, text.count("\n", 0, at) + 1, 1, "a NUL byte; is this a text file?")])
    document, found = Document(file, text.split("\n")), dict(unwanted(text))
    for at, message in found.items():
        document.issues.append(document.at(*_place(text, at), message))
    _Builder(without(text, set(found)), document).build()
    return document


def _place(text: str, index: int) -> tuple[int, int]:
    """Line and column of an index, both from 1."""
    return text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)


class _GiveUpError(Exception):
    """Stop reading: PyYAML needs quadratic time for deep nesting."""

    def __init__(self, mark: yaml.Mark, problem: str) -> None:
        super().__init__(problem)
        self.mark = mark


class _Builder:
    """Turns the events of PyYAML's parser into plain values, and records the position of each."""

    def __init__(self, text: str, document: Document) -> None:
        self.text = text
        self.document = document

    def build(self) -> None:
        try:
            # Events, not nodes: an alias or endless nesting is found before anything is built from it.
            self.events = yaml.parse(self.text, Loader=yaml.SafeLoader)
            self._stream()
        except _GiveUpError as error:
            self.document.report(error.mark, str(error))
            self.document.broken.append(())
        except yaml.MarkedYAMLError as error:
            self._fatal(*explain(error, self.text))
        except yaml.reader.ReaderError as error:
            message = f"not valid YAML: character {error.character:#06x} is not allowed"
            self._fatal(*_place(self.text, error.position), message)
        except (ValueError, OverflowError):  # for an escape beyond Unicode, and a directive of many digits
            self._fatal(1, 1, "not valid YAML: an escape or a directive holds a number that is out of range")

    def _fatal(self, line: int, column: int, message: str) -> None:
        self.document.issues.append(self.document.at(line, column, message))
        self.document.broken.append(())

    def _stream(self) -> None:
        next(self.events)
        start = next(self.events)
        if isinstance(start, yaml.StreamEndEvent):
            self.document.values[()] = (1, 1, 1)
            return
        if start.version or start.tags:
            self.document.report(start.start_mark, "a YAML directive; remove it")
        self.document.value = self._value(next(self.events), ())
        next(self.events)
        following = next(self.events)
        if not isinstance(following, yaml.StreamEndEvent):
            self.document.report(following.start_mark, "a second document; one file holds one document")

    def _value(self, event: yaml.Event, loc: Loc) -> Any:
        mark = event.start_mark
        self.document.values[loc] = (mark.line + 1, mark.column + 1, _width(event))
        if isinstance(event, yaml.AliasEvent):
            self.document.report(mark, f"an alias (*{event.anchor}); write the value out", _width(event))
            self.document.broken.append(loc)
            return None
        if event.anchor is not None:
            self.document.report(mark, f"an anchor (&{event.anchor}); remove it", len(event.anchor) + 1)
        if event.tag is not None:
            self.document.report(mark, f"a tag ({event.tag!r}); remove it")
        if isinstance(event, yaml.ScalarEvent):
            if not event.value and (event.anchor or event.tag):  # such as `description: !new`
                self.document.broken.append(loc)
            return self._scalar(event, loc)
        if len(loc) >= MAX_DEPTH:
            raise _GiveUpError(mark, f"nested more than {MAX_DEPTH} levels deep")
        return self._mapping(loc) if isinstance(event, yaml.MappingStartEvent) else self._sequence(loc)

    def _scalar(self, event: yaml.ScalarEvent, loc: Loc) -> Any:
        if not event.value.isascii() and any("\ud800" <= c <= "\udfff" for c in event.value):
            self.document.report(event.start_mark, "half of a surrogate pair is not a character")
            self.document.broken.append(loc)
        return resolve(event.value) if event.style is None else event.value

    def _sequence(self, loc: Loc) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self._value(event, (*loc, len(items))))
        return items

    def _mapping(self, loc: Loc) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self._key(event, loc)
            if key is None:
                self._discard(loc)
                continue
            mark = event.start_mark
            if key in items:
                first = self.document.keys[(*loc, key)][0]
                self.document.report(mark, f"duplicate key {key!r}; the first one is on line {first}", _width(event))
                self._discard(loc)
                continue
            self.document.keys[(*loc, key)] = (mark.line + 1, mark.column + 1, _width(event))
            items[key] = self._value(next(self.events), (*loc, key))
        return items

    def _key(self, event: yaml.Event, loc: Loc) -> str | None:
        """The key as written, or None after reporting why it is not valid."""
        if isinstance(event, yaml.CollectionStartEvent):
            raise _GiveUpError(event.start_mark, "a key must be plain text, not a list or mapping")
        if isinstance(event, yaml.AliasEvent) or event.tag is not None or event.anchor is not None:
            self.document.report(event.start_mark, "a key must be plain text, without tag, anchor or alias")
            return None
        return event.value

    def _discard(self, loc: Loc) -> None:
        """Skip the value of a key that is not kept; problems inside it are still reported."""
        hidden = (*loc, "\0")
        self._value(next(self.events), hidden)
        self.document.values.pop(hidden, None)


def _width(event: yaml.Event) -> int:
    """The number of characters of its first line that an event covers, at least 1."""
    start, end = event.start_mark, event.end_mark
    return max(1, end.column - start.column) if start.line == end.line else 1
