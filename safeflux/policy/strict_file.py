"""Files that people write: the others (packs, profiles) read as strictly as policies, and JSON Schemas for editors."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pydantic import BaseModel

from safeflux.errors import ConfigError
from safeflux.policy.validate import read_policy_file
from safeflux.policy.yaml_reader import Issue, Loc, PolicyFileError, Readable

_Model = TypeVar("_Model", bound=BaseModel)


def read_strict(
    entry: Readable,
    label: str,
    schema: type[_Model],
    faults: Callable[[_Model], Iterable[tuple[Loc, str]]] = lambda value: (),
) -> _Model:
    """Read a file by its schema.

    Args:
        entry: A path, or an entry of `importlib.resources`.
        label: Its name in messages.
        schema: The pydantic model that it must match.
        faults: Finds further faults in a file that matches the schema: the place of each, and a message.

    Raises:
        ConfigError: It cannot be read or is not valid; the message has each problem with file, line, column and an
            excerpt.
    """
    try:
        value, document = read_policy_file(entry, label, schema)
    except PolicyFileError as error:
        raise ConfigError(_text(list(error.issues))) from error.__cause__
    if value is None:
        raise ConfigError(_text(document.issues))
    if found := [document.issue(loc, message) for loc, message in faults(value)]:
        raise ConfigError(_text(found))
    return value


def _text(issues: list[Issue]) -> str:
    return "\n".join(str(issue) for issue in sorted(set(issues)))


def json_schema(file: type[BaseModel], title: str) -> dict[str, Any]:
    """The JSON Schema of a file's model, draft-07."""
    schema = file.model_json_schema(ref_template="#/definitions/{model}")
    definitions = schema.pop("$defs", {})
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": title,
        **_draft_07({key: value for key, value in schema.items() if key != "title"}),
        "definitions": _draft_07(definitions),
    }


def _draft_07(part: Any) -> Any:
    """Put each `$ref` that has neighbours into an `allOf`, since draft-07 ignores whatever stands beside a `$ref`."""
    if isinstance(part, list):
        return [_draft_07(item) for item in part]
    if not isinstance(part, dict):
        return part
    walked = {key: _draft_07(value) for key, value in part.items()}
    if "$ref" in walked and len(walked) > 1:
        return {"allOf": [{"$ref": walked.pop("$ref")}], **walked}
    return walked
