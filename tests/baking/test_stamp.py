"""What guarded files say of themselves: one schema, older ones read, newer ones refused by name."""

import json
from dataclasses import replace

import pytest

from safeflux.baking.stamp import FORMAT, KEY, PolicyId, Stamp
from safeflux.errors import ModelError

STAMP = Stamp(
    base="f" * 8,
    form="rows",
    policies=(PolicyId("strict", "a" * 64), PolicyId("shop", "b" * 64)),
    masks={"weapons": "c" * 64},
    masks_sha256="d" * 64,
    version="0.1.0",
)
OF_A_TENSOR_FILE = {
    "format": "safeflux-bake/1",
    "base": "f" * 8,
    "form": "compact",
    "masks": {"weapons": "c" * 64},
    "policy": {"name": "strict", "sha256": "a" * 64},
    "version": "0.1.0",
}
OF_AN_ONNX_MODEL = {
    "format": "safeflux-onnx/1",
    "base": "f" * 8,
    "form": "both",
    "masks_sha256": "d" * 64,
    "policies": [{"name": "strict", "sha256": "a" * 64}],
    "version": "0.1.0",
}


def test_what_is_written_is_read_back():
    text = STAMP.metadata[KEY]
    assert Stamp.read(text, "x") == STAMP
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert Stamp.read(None, "x") is None


def test_settings_of_a_folder_are_kept():
    stamp = replace(STAMP, settings={"config.json": "e" * 64})
    assert Stamp.read(stamp.metadata[KEY], "x") == stamp


def test_both_older_schemas_are_read():
    tensors, onnx = (Stamp.read(json.dumps(each), "x") for each in (OF_A_TENSOR_FILE, OF_AN_ONNX_MODEL))
    assert tensors.policies == onnx.policies == (PolicyId("strict", "a" * 64),)
    assert (tensors.masks, tensors.masks_sha256, tensors.is_compact) == ({"weapons": "c" * 64}, None, True)
    assert (onnx.masks, onnx.masks_sha256, onnx.is_compact) == ({}, "d" * 64, False)


def test_a_newer_schema_is_refused_by_name():
    newer = json.dumps(STAMP.to_json() | {"format": "safeflux-guarded/3"})
    with pytest.raises(ModelError, match=rf"model: .*expected format '{FORMAT}' or older, got 'safeflux-guarded/3'"):
        Stamp.read(newer, "model")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", "[" * 100_000]
    + [json.dumps({key: value for key, value in STAMP.to_json().items() if key != gone}) for gone in ("base", "form")]
    + [json.dumps(STAMP.to_json() | {"policies": other}) for other in (None, ["strict"], [{}])]
    + [json.dumps(STAMP.to_json() | {"settings": ["config.json"]})]
    + [json.dumps(STAMP.to_json() | {"masks": [1]})],
)
def test_what_does_not_follow_the_schema_is_one_error(text):
    with pytest.raises(ModelError, match="model: metadata key 'safeflux' cannot be read"):
        Stamp.read(text, "model")
