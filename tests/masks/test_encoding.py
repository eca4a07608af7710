"""The one JSON text of a value, and keys that come twice."""

import pytest

from safeflux.disk.canonical import canonical_json, unique_keys


def test_json_has_one_form():
    assert canonical_json({"b": 1.5, "a": ["ü"]}) == '{"a":["\\u00fc"],"b":1.5}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
    with pytest.raises(ValueError, match="key 'a' appears twice"):
        unique_keys([("a", 1), ("a", 2)])
