"""Translates PyYAML's errors into the words of someone who writes policies: where the fault is, and the remedy."""

import re
from typing import NamedTuple

import yaml

_CLOSING = {"[": "]", "{": "}"}
_CONFLICT = re.compile(r"^(?:<{7}|>{7}|={7})(?= |$)", re.MULTILINE)


class Fault(NamedTuple):
    """Where a file is broken, line and column from 1, and why."""

    line: int
    column: int
    message: str


def explain(error: yaml.MarkedYAMLError, text: str) -> Fault:
    """The fault behind an error of PyYAML's scanner or parser."""
    mark, context = error.problem_mark or error.context_mark, error.context_mark
    if mark is None:
        return Fault(1, 1, f"not valid YAML: {_one_line(error)}")
    problem, lines = error.problem or "", text.split("\n")
    if conflict := _CONFLICT.search(text):
        line = text.count("\n", 0, conflict.start()) + 1
        return Fault(line, 1, "a conflict marker of a merge; decide between the versions and remove the markers")
    if context and (context_of := re.fullmatch("while scanning an (alias|anchor)", error.context or "")):
        sign = "*" if context_of[1] == "alias" else "&"
        return Fault(context.line + 1, context.column + 1, f"a value may not begin with {sign!r}; put it in quotes")
    if context and "could not find expected ':'" in problem:
        line = lines[context.line]
        return Fault(context.line + 1, context.column + 1, _no_colon(line[context.column :]))
    if context and (fault := _never_closed(error, text)):
        return Fault(context.line + 1, context.column + 1, fault)
    if "<stream end>" in problem and (opening := _last_open(text)) is not None:
        before = text[:opening]
        return Fault(before.count("\n") + 1, opening - before.rfind("\n"), _open_message(text[opening]))
    return Fault(mark.line + 1, mark.column + 1, _message(error, problem, mark, lines))


def _message(error: yaml.MarkedYAMLError, problem: str, mark: yaml.Mark, lines: list[str]) -> str:
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "'\\t'" in problem:
        return "a tab; YAML only allows spaces for indentation: replace it with two spaces"
    if found := re.search(r"character '(.)' that cannot start", problem):
        return f"a value may not begin with {found[1]!r}; put it in quotes"
    if "unknown escape character" in problem:
        return "unknown escape after the backslash; write the text in single quotes, or the backslash twice"
    if re.search(r"found '[\]}]'", problem):
        return f"this {line[mark.column]!r} does not close anything; remove it"
    if "expected ',' or" in problem:
        return "a comma is missing before this"
    if "mapping values are not allowed" in problem:
        return _second_colon(line, mark, lines)
    if "<document start>" in problem and "..." in map(str.rstrip, lines[: mark.line]):
        return "text after the end of the document, which is the line `...`; remove one of them"
    if "<block end>" in problem or "<document start>" in problem:
        return _indentation(mark, lines) if not line[: mark.column].strip() else _after_value()
    return f"not valid YAML: {_one_line(error)}"


def _no_colon(text: str) -> str:
    """A message about text that stands where a `key: value` should, from its first character on."""
    if text.startswith("//"):
        return "a comment begins with '#'"
    if re.match(r"-\S", text):
        return "a list item needs a space after its '-'"
    if "\uff1a" in text:
        return "this is no `key: value`; its colon is U+FF1A FULLWIDTH COLON: write a plain colon and a space"
    if re.match(r"[\w-]+\s*=", text):
        return "this is no `key: value`; write a colon and a space, not '='"
    return "this is no `key: value`; a key ends in a colon, and a colon needs a space after it"


def _never_closed(error: yaml.MarkedYAMLError, text: str) -> str | None:
    """A message about a quote or bracket that is never closed; None if there is none."""
    context, at = error.context or "", _index(text, error.context_mark)
    if "quoted scalar" in context and "end of stream" in (error.problem or ""):
        return f"this quote {text[at]} is never closed"
    if context.startswith("while parsing a flow") and text[at : at + 1] in _CLOSING and not _is_closed(text, at):
        return _open_message(text[at])
    return None


def _open_message(bracket: str) -> str:
    return f"this {bracket!r} is never closed; add {_CLOSING[bracket]!r} where it ends"


def _is_closed(text: str, at: int) -> bool:
    """Whether the bracket at an index is closed before a bracket of another kind."""
    return not _open_brackets(text[at:], until_closed=True)


def _last_open(text: str) -> int | None:
    opened = _open_brackets(text, until_closed=False)
    return opened[-1] if opened else None


def _open_brackets(text: str, *, until_closed: bool) -> list[int]:
    """Indices of the brackets that are open at the end, or at a closing bracket of another kind; skips quotes."""
    opened: list[int] = []
    # A quote opens at the start of a value, and a comment after white space.
    for found in re.finditer(r"(?<=[\s,:\[{])(?:'[^'\n]*'|\"(?:\\.|[^\"\\\n])*\"|#[^\n]*)|[\[\]{}]", text):
        bracket = found[0]
        if bracket in _CLOSING:
            opened.append(found.start())
        elif bracket in ("]", "}") and opened:
            if _CLOSING[text[opened[-1]]] != bracket:
                return opened
            opened.pop()
            if until_closed and not opened:
                return []
    return opened


def _second_colon(line: str, mark: yaml.Mark, lines: list[str]) -> str:
    if re.search(r":\s", line[: mark.column]):
        return "a second ':' in one line; put the value in quotes, or its key on a line of its own"
    above = _above(mark, lines)
    if above and _indent(line) > _indent(above[-1]):
        return _indentation(mark, lines)
    return "the text before it is not a `key: value`; a colon needs a space after it"


def _indentation(mark: yaml.Mark, lines: list[str]) -> str:
    mine, depths = _indent(lines[mark.line]), sorted({_indent(line) for line in _above(mark, lines)})
    if mine in depths:
        return "a list item ('- ') and a `key: value` have the same indentation; indent one of them, or remove it"
    spaces = "1 space" if mine == 1 else f"{mine} spaces"
    above = " or ".join(map(str, depths))
    return f"wrong indentation: this line has {spaces} before it, those above have {above}"


def _after_value() -> str:
    return "text after the end of a value; put the whole value in double quotes"


def _above(mark: yaml.Mark, lines: list[str]) -> list[str]:
    return [line for line in lines[: mark.line] if line.strip() and not line.lstrip().startswith("#")]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _index(text: str, mark: yaml.Mark) -> int:
    start = 0
    for _ in range(mark.line):
        start = text.index("\n", start) + 1
    return start + int(mark.column)


def _one_line(error: yaml.MarkedYAMLError) -> str:
    return " ".join(str(error.problem or error.context).split())
