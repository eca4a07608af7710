"""One policy file on its own: read, parsed and validated by the schema, with errors in an operator's words."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from safeflux.policy.yaml_reader import Document, Loc, Readable, read_document

_Model = TypeVar("_Model", bound=BaseModel)

_NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"
_NAME_RULE = "a name is 1 to 64 lower-case letters, digits, '-' and '_', and starts with a letter or digit"
_PATTERNS = {
    _NAME: f"a name: {_NAME_RULE}",
    r"^[0-9a-f]{64}$": "a sha256 (64 lower-case hex digits)",
    r"^[0-9a-f]{40}$": "a commit (40 lower-case hex digits)",
    r"^\S(.*\S)?$": "one line of text that neither begins nor ends with a space",
    r"^[^@\s]+(@sha256:[0-9a-f]{64})?$": "a policy's name or path, with or without @sha256: and 64 hex digits",
    r'^"?\d{1,9}"?$': "the number of a revision, such as 3",
}

_READERS = {
    "Policy": "`safeflux policy check`",
    "PolicyTest": "`safeflux policy test`",
    "Pack": "`safeflux pack check`",
    "Profile": "`--model`",
    "Tokens": "`safeflux serve --tokens`",
}
"""What reads the files of each kind."""


def pattern_words(pattern: str) -> str:
    """What a regular expression of a schema stands for, in words.

    Examples:
        >>> pattern_words("^[0-9a-f]{64}$")
        'a sha256 (64 lower-case hex digits)'
    """
    return _PATTERNS[pattern]


class PlacedError(ValueError):
    """A validator's error about a value inside its model; the message to the writer of a file points there.

    Args:
        loc: The path to the value, from the validator's model.
        message: The fault.
    """

    def __init__(self, loc: Loc, message: str) -> None:
        super().__init__(f"{'.'.join(map(str, loc))}: {message}")
        self.loc, self.message = loc, message


def read_policy_file(entry: Readable, label: str, schema: type[_Model]) -> tuple[_Model | None, Document]:
    """Read a file by its schema (None if it is not valid), and its document, whose `issues` list all problems.

    Raises:
        PolicyFileError: The file cannot be read as text.
    """
    document = read_document(entry, label)
    return validate(document, schema), document


def validate(document: Document, schema: type[_Model]) -> _Model | None:
    """Validate a document; return None after adding all problems to its issues."""
    if document.is_broken(()):
        return None
    if other := _other_kind(document, schema):
        document.issues.append(document.issue(("kind",), other))
        return None
    try:
        file = schema.model_validate(document.value)
    except ValidationError as error:
        for loc, problem in _problems(document, error):
            if not document.is_broken(loc):
                at_key = problem["type"] == "extra_forbidden" or "[key]" in problem["loc"]
                document.issues.append(document.issue(loc, _message(schema, loc, problem), key=at_key))
        return None
    return None if document.issues else file


def _other_kind(document: Document, schema: type[BaseModel]) -> str:
    """A message about a file that is for another command; one error, where each of its keys would be another."""
    kind = document.value.get("kind") if isinstance(document.value, dict) else None
    field = schema.model_fields.get("kind")
    if field is None or not isinstance(kind, str) or kind not in _READERS or kind in get_args(field.annotation):
        return ""
    return f"kind: expected a {get_args(field.annotation)[0]}, got a {kind}; {_READERS[kind]} reads it"


def messages(schema: type[BaseModel], error: ValidationError) -> Iterator[str]:
    """The message about each problem of values that come from no file, with its place in front."""
    for problem in error.errors(include_url=False):
        loc: Loc = (*problem["loc"], *getattr(problem.get("ctx", {}).get("error"), "loc", ()))
        message, is_key = _message(schema, loc, problem), problem["type"] in ("extra_forbidden", "missing")
        yield ": ".join((*([".".join(map(str, loc[:-1]))] if is_key and loc[1:] else []), message))


def _problems(document: Document, error: ValidationError) -> Iterator[tuple[Loc, Any]]:
    """Each problem with its place in the file. Of a value that may be of several types, only one."""
    of_unions: dict[Loc, list[Any]] = {}
    for problem in error.errors(include_url=False):
        inside = getattr(problem.get("ctx", {}).get("error"), "loc", ())
        loc: Loc = (*(part for part in problem["loc"] if part != "[key]"), *inside)
        is_of_union = loc[:-1] in document.values and loc not in document.values and not inside
        if is_of_union and problem["type"] not in ("missing", "extra_forbidden"):
            of_unions.setdefault(loc[:-1], []).append(problem)
        else:
            yield loc, problem
    for loc, problems in of_unions.items():
        is_text = isinstance(problems[0]["input"], str)
        yield loc, next((one for one in problems if (one["type"] == "literal_error") is is_text), problems[0])


def _message(schema: type[BaseModel], loc: Loc, problem: Any) -> str:
    """The message about a problem, in the words of someone who writes policies."""
    where = ".".join(str(part) for part in loc) or "the file"
    got = show(problem["input"])
    match problem["type"]:
        case "extra_forbidden":
            key = str(loc[-1])
            if key == "<<":
                return "a merge key ('<<'); write the keys out"
            if key.isdigit():
                return f"unknown key {show(key)}; a number has a decimal point, not a comma"
            return f"unknown key {show(key)}{suggest(key, _keys_at(schema, loc[:-1]))}{_strange_letters(key)}"
        case "missing":
            return f"the key {loc[-1]!r} is missing{_only_value(schema, loc)}"
        case "enum" | "literal_error":
            expected = problem["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
            word = str(problem["input"])
            return f"{where}: {got} is not known{suggest(word, expected)}{_strange_letters(word)}"
        case "string_pattern_mismatch":
            pattern = problem["ctx"]["pattern"]
            if pattern == _NAME:
                return name_fault(problem["input"])
            return f"{where}: {got} is not {pattern_words(pattern)}{_strange_letters(problem['input'])}"
        case "string_type":
            return f"{where}: expected text, got {got}; if this is meant as text, put it in quotes"
        case "model_type" | "dict_type":
            keys = ", ".join(_keys_at(schema, loc)) or _example(schema, loc, problem["input"])
            return f"{where}: expected keys ({keys}), got {got}"
        case "tuple_type":
            example = problem["input"] if isinstance(problem["input"], str) else "one, other"
            return f"{where}: expected a list such as [{show(example).strip(chr(39))}], got {got}"
        case "value_error":
            fault = problem["ctx"]["error"]
            return f"{where}: {fault.message if isinstance(fault, PlacedError) else fault}"
        case "float_type" if isinstance(problem["input"], str) and (number := _number(problem["input"])) is not None:
            how = "with a decimal point" if "," in problem["input"] else "without quotes or sign"
            return f"{where}: {got} is text; write the number {number:g}, {how}"
        case "less_than_equal" if 1 < problem["input"] <= 100:
            return f"{where}: expected a share from 0 to 1, got {got}; for {got} % write {problem['input'] / 100:g}"
    expected = problem["msg"].removeprefix("Input should be ")
    expected = f"a number {expected}" if expected.startswith(("greater", "less")) else expected
    return f"{where}: expected {expected[0].lower()}{expected[1:]}, got {got}"


def _strange_letters(word: str) -> str:
    """The end of a message about a word: which of its characters are no plain letters, though they may look so."""
    strange = [char for char in dict.fromkeys(word) if not char.isascii() and char.isprintable()]
    named = [f"{char!r} is U+{ord(char):04X} {unicodedata.name(char, 'unnamed')}" for char in strange[:3]]
    return f"; {', '.join(named)}" if named else ""


def _number(text: str) -> float | None:
    """The number that a string stands for; a percentage becomes a share. None if it is not a number."""
    bare = text.strip().removesuffix("%").strip()
    if bare.count(",") == 1 and "." not in bare:  # as many languages write it
        bare = bare.replace(",", ".")
    try:
        return float(bare) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        return None


def _only_value(schema: Any, loc: Loc) -> str:
    """The line to add for a missing key that has only one value."""
    kind = _fields(_type_at(schema, loc[:-1])).get(str(loc[-1]))
    values = get_args(kind) if get_origin(kind) is Literal else ()
    return f"; add `{loc[-1]}: {values[0]}`" if len(values) == 1 else ""


def _example(schema: Any, loc: Loc, value: Any) -> str:
    """What a mapping holds, by the word or the words that were given in its place."""
    word = value[0] if isinstance(value, list | tuple) and value else value
    if isinstance(word, str) and not name_fault(word) and "masks" in _fields(_values(_type_at(schema, loc))):
        return f"{word}: {{masks: [{word}]}}"
    return "name: value"


def _keys_at(schema: Any, loc: Loc) -> list[str]:
    """The keys that a schema knows at a location."""
    return list(_fields(_type_at(schema, loc)))


def _type_at(schema: Any, loc: Loc) -> Any:
    for part in loc:
        schema = _fields(schema).get(str(part)) or _values(schema)
    return schema


def _fields(schema: Any) -> dict[str, Any]:
    """The keys of a model with their types; of a type that may be one among others, those of the first model."""
    models = [one for one in (schema, *get_args(schema)) if isinstance(one, type) and issubclass(one, BaseModel)]
    fields = models[0].model_fields if models and get_origin(schema) is not dict else {}
    return {field.alias or name: field.annotation for name, field in fields.items()}


def _values(schema: Any) -> Any:
    """The type of a mapping's values; None for anything else."""
    return get_args(schema)[1] if get_origin(schema) is dict else None


def name_fault(text: str) -> str:
    """A message about a text that is no name of a policy, category or mask set; empty for a name.

    Examples:
        >>> name_fault("shop")
        ''
        >>> name_fault("My shop").partition(":")[0]
        "'My shop' is not a name"
    """
    if re.fullmatch(_NAME, text):
        return ""
    return f"{show(text)} is not {pattern_words(_NAME)}{_strange_letters(text)}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like this one; None if none is near."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1) if len(word) <= 100 else []
    return near[0] if near else None


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of a message: the nearest known word, or all known words if none is near."""
    known = list(known)
    near = nearest(word, known)
    return f"; did you mean {near!r}?" if near else f"; known: {', '.join(known)}" if known else ""


def show(value: Any) -> str:
    """A value for a message: short and printable."""
    text = (
        repr(value)
        if isinstance(value, str | int | float | None)
        else f"a {'list' if isinstance(value, list) else 'mapping'}"
    )
    text = "nothing" if value is None else text.lower() if isinstance(value, bool) else text
    return text if len(text) <= 80 else f"{text[:77]}..."
