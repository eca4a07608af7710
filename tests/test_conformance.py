"""The conformance folder, which any other implementation could run: each file, and what must become of it."""

import json
from pathlib import Path

import pytest

from safeflux.errors import MaskFileError, PolicyError
from safeflux.masks.encoding import decode, digest
from safeflux.policy.load import PolicyFileError, load_policy

ROOT = Path(__file__).parent / "conformance"


def cases(kind):
    expected = json.loads((ROOT / kind / "expected.json").read_text(encoding="utf-8"))
    assert expected.keys() == {path.name for path in (ROOT / kind).iterdir()} - {"expected.json"}
    return [pytest.param(ROOT / kind / name, outcome, id=name) for name, outcome in expected.items()]


@pytest.mark.parametrize(("path", "outcome"), cases("policies"))
def test_a_policy_is_taken_or_refused_at_these_places(path, outcome):
    if "sha256" in outcome:
        assert load_policy(path).digest == outcome["sha256"]
        return
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    assert isinstance(caught.value, PolicyFileError)
    assert [[issue.line, issue.column] for issue in caught.value.issues] == outcome["errors"]


@pytest.mark.parametrize(("path", "outcome"), cases("masks"))
def test_a_mask_file_is_taken_or_refused(path, outcome):
    if "error" in outcome:
        with pytest.raises(MaskFileError):
            decode(path.read_bytes(), path.name)
        return
    masks, meta = decode(path.read_bytes(), path.name)
    assert digest(masks) == outcome["masks_sha256"]
    assert meta.category == outcome["category"]
