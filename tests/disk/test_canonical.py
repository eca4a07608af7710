"""JSON from outside: one strict reader, and whatever readers could disagree on is refused."""

import json

import pytest

from safeflux.disk.canonical import MAX_DEPTH, canonical_json, parse_json, parse_mapping, read_json
from safeflux.errors import ModelError

REFUSED = {
    "a key twice": ('{"a": 1, "a": 2}', "'a' appears twice"),
    "a key twice, deep": ('[{"a": {"b": 1, "b": 1}}]', "'b' appears twice"),
    "NaN": ('{"a": NaN}', "NaN is not a number"),
    "infinity": ("[-Infinity]", "-Infinity is not a number"),
    "a number that overflows": ("[1e999]", "1e999 is too large"),
    "a number of many digits": ("9" * 5000, "4300"),
    "half a pair": ('{"a": "\\ud800"}', "surrogates not allowed"),
    "not UTF-8": (b'"\xff"', "utf-8"),
    "deep lists": ("[" * 100_000, "levels deep"),
    "deep lists that end": ("[" * 100_000 + "]" * 100_000, "levels deep"),
    "deep objects": ('{"a":' * 5000 + "1" + "}" * 5000, "levels deep"),
    "a little too deep": ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "levels deep"),
    "two values": ("{} {}", "Extra data"),
    "nothing": ("", "Expecting value"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_readers_disagree_on_is_refused(name):
    text, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_all_else_is_read_as_it_is():
    value = {"b": [1, 2.5, None, True, "ü😀"], "a": {}, "c": 10**30}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), canonical_json(value)):
        assert parse_json(text) == parse_json(text.encode()) == value
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert canonical_json(parse_json(deep)) == deep


def test_a_mapping_is_asked_for_by_name(tmp_path):
    with pytest.raises(ValueError, match="expected a mapping, got list"):
        parse_mapping("[]")
    path = tmp_path / "config.json"
    for content in (b"[]", b"{", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"config\.json: cannot be read as JSON .*copy the model again"):
            read_json(path)
    with pytest.raises(ModelError, match="not a regular file"):
        read_json(tmp_path)
