"""Mask files: what is written is read back, in canonical bytes; everything else is refused by name."""

import dataclasses
import hashlib
import json
import re
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from safeflux.errors import MaskFileError
from safeflux.masks.encoding import MAX_HEADER_BYTES, decode, decode_meta, digest, encode
from safeflux.masks.file import load_masks, read_bytes, save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.meta import FORMAT, MaskMeta

SPARSE, DENSE, MATRIX = "a.norm:norm", "b.ff:ff", "c.embed:weight"
META = MaskMeta("weapons", ("dagger",), "tiny", "flux1", "sf1-x", "by hand", "0" * 64, "Apache-2.0", {"n": [1, 2.5]})


def small_masks():
    sparse = torch.arange(100) != 7
    dense = torch.arange(13) % 2 == 0
    return MaskSet({SPARSE: sparse, DENSE: dense, MATRIX: torch.arange(12).view(3, 4) % 3 != 0})


GOOD = encode(small_masks(), META)


def parts(data):
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(header, body):
    """A file with another header, laid out as canonically as it can be, so that only the change itself is wrong."""
    return laid_out(json.dumps(header, sort_keys=True, separators=(",", ":")), body)


def compact(header):
    return json.dumps(header, separators=(",", ":"))


def laid_out(text, body):
    """A file with this text as its header."""
    padded = text.encode() + b" " * (-len(text) % 8)
    return struct.pack("<Q", len(padded)) + padded + body


def with_metadata(**changes):
    header, body = parts(GOOD)
    metadata = header["__metadata__"] | changes
    header["__metadata__"] = {key: value for key, value in metadata.items() if value is not None}
    return join(header, body)


def with_entry(name, **changes):
    header, body = parts(GOOD)
    header[name] = {**header[name], **changes}
    return join(header, body)


def with_data(name, data):
    header, body = parts(GOOD)
    start, stop = header[name]["data_offsets"]
    assert len(data) == stop - start
    return join(header, body[:start] + data + body[stop:])


def with_widths(**changes):
    widths = json.loads(parts(GOOD)[0]["__metadata__"]["widths"])
    return with_metadata(widths=json.dumps(widths | changes, sort_keys=True, separators=(",", ":")))


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.02, 0.3, 1.0]), st.integers(1, 90), st.integers(1, 9))
@settings(max_examples=50)
def test_what_is_encoded_is_decoded(seed, share, width, rows):
    draw = torch.Generator().manual_seed(seed)
    masks = MaskSet(
        {
            "x:ff": torch.rand(width, generator=draw) >= share,
            "y:weight": torch.rand(rows, width, generator=draw) >= share,
        }
    )
    assert decode(encode(masks, META), "x") == (masks, META)


def test_save_and_load(tmp_path, make_masks, make_meta):
    masks, meta = make_masks(1), make_meta(evaluation={"figures": [0.1, {"seeds": (1, 2)}], "text": "ü"})
    sha256 = save_masks(tmp_path / "m.safetensors", masks, meta)
    assert load_masks(tmp_path / "m.safetensors") == (masks, meta)
    assert save_masks(tmp_path / "again.safetensors", masks, meta) == sha256
    assert read_bytes(tmp_path / "m.safetensors") == read_bytes(tmp_path / "again.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.safetensors", "m.safetensors"]


def test_bytes_do_not_depend_on_the_order_of_anything():
    masks = small_masks()
    backwards = MaskSet(dict(reversed(list(masks.items()))))
    meta = dataclasses.replace(META, evaluation={"b": 1, "a": 2})
    same = dataclasses.replace(META, evaluation={"a": 2, "b": 1})
    assert encode(backwards, same) == encode(masks, meta)


def test_the_bytes_of_format_1_by_hand():
    header, body = parts(GOOD)
    assert header.pop("__metadata__")["format"] == "safeflux-mask/1"
    assert header == {
        SPARSE: {"dtype": "U32", "shape": [1], "data_offsets": [0, 4]},
        DENSE: {"dtype": "U8", "shape": [2], "data_offsets": [4, 6]},
        MATRIX: {"dtype": "U8", "shape": [2], "data_offsets": [6, 8]},
    }
    assert body == struct.pack("<I", 7) + bytes([0b01010101, 0b00010101]) + bytes([0b10110110, 0b1101])
    assert len(GOOD) % 8 == 0


def test_safetensors_itself_reads_the_file(tmp_path):
    path = tmp_path / "m.safetensors"
    save_masks(path, small_masks(), META)
    tensors = load_file(path)
    assert tensors[SPARSE].tolist() == [7]
    assert tensors[DENSE].tolist() == [0b01010101, 0b00010101]
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["widths"]) == {SPARSE: [100], DENSE: [13], MATRIX: [3, 4]}
        assert set(file.metadata()) == {field.name for field in dataclasses.fields(MaskMeta)} | {"format", "widths"}


def test_a_mask_of_a_large_matrix_is_small():
    mask = torch.ones(2000, 1000, dtype=torch.bool)
    mask[::40, 7] = False
    assert len(encode(MaskSet({MATRIX: mask}), META)) < 2000


def test_the_digest_names_the_bits_alone(make_masks):
    a, b = make_masks(1), make_masks(2)
    assert digest(a) == digest(MaskSet(dict(a))) != digest(b)
    first = next(iter(a))
    flipped = a[first]
    flipped[0] = ~flipped[0]
    assert digest(a) != digest(MaskSet({**a, first: flipped}))
    assert digest(MaskSet({"x:ff": torch.ones(2, dtype=torch.bool)})) != digest(
        MaskSet({"x:ff": torch.ones(3, dtype=torch.bool)})
    )


def test_the_page_that_defines_the_format_names_every_key():
    page = (Path(__file__).parents[2] / "docs" / "mask-format.md").read_text(encoding="utf-8")
    table = page.partition("## Metadata")[2].partition("##")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(parts(GOOD)[0]["__metadata__"])
    assert f"{MAX_HEADER_BYTES:,}" in page
    assert FORMAT in table


def test_the_digest_is_that_of_the_page():
    header, body = parts(GOOD)
    header["__metadata__"] = {"widths": header["__metadata__"]["widths"]}
    assert digest(small_masks()) == hashlib.sha256(join(header, body)).hexdigest()


def test_metadata_alone_can_be_read():
    assert decode_meta(GOOD, "x") == META
    with pytest.raises(MaskFileError, match=r"^x: metadata key 'licence': missing"):
        decode_meta(with_metadata(licence=None), "x")


def test_every_truncation_is_refused():
    for size in range(len(GOOD)):
        with pytest.raises(MaskFileError, match=r"^x: .*truncated"):
            decode(GOOD[:size], "x")


def test_every_single_byte_changed_is_refused_or_changes_the_result():
    original = decode(GOOD, "x")
    for place in range(len(GOOD)):
        data = bytearray(GOOD)
        data[place] ^= 1
        try:
            assert decode(bytes(data), "x") != original
        except MaskFileError:
            continue


HOSTILE = {
    "trailing bytes": (GOOD + b"\0", "trailing bytes"),
    "over-long header": (
        struct.pack("<Q", 2**40) + GOOD[8:],
        "header: expected at most 1048576 bytes, got 1099511627776",
    ),
    "header is no JSON": (laid_out("{[", b""), "header: expected JSON"),
    "header is a list": (join([], b""), "'__metadata__'"),
    "deep header": (struct.pack("<Q", 200_000) + b"[" * 200_000, "header: expected JSON"),
    "key twice": (laid_out('{"a":1,"a":2}', b""), "header: expected JSON.*key 'a' appears twice"),
    "a plain torch file": (with_metadata(format="pt"), "'format'.*not a mask file"),
    "no format": (with_metadata(format=None), "'format'.*not a mask file"),
    "newer format": (with_metadata(format="safeflux-mask/2"), "'format'.*safeflux-mask/2.*newer safeflux"),
    "unknown metadata key": (with_metadata(author="me"), "metadata key 'author': unknown"),
    "missing metadata key": (with_metadata(method=None), "metadata key 'method': missing"),
    "metadata that is no text": (with_metadata(category=3), "metadata key 'category'"),
    "empty text": (with_metadata(licence=" "), "metadata key 'licence': expected a non-empty string"),
    "no digest": (with_metadata(config_sha256="abc"), "metadata key 'config_sha256'"),
    "concepts are no list": (with_metadata(concepts='"dagger"'), "metadata key 'concepts'"),
    "no concepts": (with_metadata(concepts="[]"), "metadata key 'concepts'"),
    "evaluation is no object": (with_metadata(evaluation="[]"), "metadata key 'evaluation'"),
    "evaluation is not a number": (with_metadata(evaluation='{"n":NaN}'), "metadata key 'evaluation'"),
    "evaluation is no JSON": (with_metadata(evaluation="{"), "metadata key 'evaluation': expected JSON"),
    "widths are no object": (with_metadata(widths="[]"), "metadata key 'widths'"),
    "width of nothing": (with_widths(**{"d.ff:ff": [4]}), "tensor 'd.ff:ff': missing"),
    "tensor without width": (
        with_metadata(widths=f'{{"{SPARSE}":[100],"{DENSE}":[13]}}'),
        f"tensor '{MATRIX}': no width",
    ),
    "vector for a matrix": (with_widths(**{MATRIX: [12]}), f"site '{MATRIX}'.*rows, columns"),
    "width is a text": (with_widths(**{DENSE: ["13"]}), f"site '{DENSE}'"),
    "width is true": (with_widths(**{DENSE: [True]}), f"site '{DENSE}'"),
    "width zero": (with_widths(**{DENSE: [0]}), f"site '{DENSE}'"),
    "width below zero": (with_widths(**{DENSE: [-13]}), f"site '{DENSE}'"),
    "width beyond measure": (
        with_widths(**{SPARSE: [2**32]}),
        f"site '{SPARSE}'.*more than 4294967296 bits|site.*more than",
    ),
    "another width, same bytes": (with_widths(**{DENSE: [12]}), f"tensor '{DENSE}'.*zero padding"),
    "wrong width": (with_widths(**{DENSE: [17]}), f"tensor '{DENSE}': expected 3 bytes for 17 bits, got 2"),
    "wrong name": (with_widths(**{"no kind": [4]}), "tensor 'no kind'"),
    "wrong dtype": (with_entry(DENSE, dtype="I8"), f"tensor '{DENSE}': expected a dtype U8 or U32"),
    "other dtype": (with_entry(DENSE, dtype="U32"), f"tensor '{DENSE}': shape .* disagree"),
    "unknown key in an entry": (with_entry(DENSE, extra=1), f"tensor '{DENSE}': expected a dtype"),
    "offsets run back": (with_entry(DENSE, data_offsets=[6, 4]), f"tensor '{DENSE}': shape .* disagree"),
    "offsets are no numbers": (
        with_entry(DENSE, data_offsets=["4", 6]),
        f"tensor '{DENSE}': expected two data offsets",
    ),
    "offsets overlap": (with_entry(MATRIX, data_offsets=[4, 6]), "trailing bytes|canonical"),
    "wrong shape": (with_entry(DENSE, shape=[3]), f"tensor '{DENSE}': shape .* disagree"),
    "padding bit": (with_data(DENSE, bytes([0b01010101, 0b10010101])), f"tensor '{DENSE}': expected zero padding"),
    "index too large": (
        with_data(SPARSE, struct.pack("<I", 100)),
        f"tensor '{SPARSE}': expected strictly increasing indices",
    ),
    "dense where sparse is due": (with_data(MATRIX, bytes([255, 15])), f"tensor '{MATRIX}'.*not encoded as uint8"),
    "spaces in the header": (laid_out(json.dumps(parts(GOOD)[0]), parts(GOOD)[1]), "header: not in canonical form"),
    "keys in another order": (
        laid_out(compact(dict(reversed(parts(GOOD)[0].items()))), parts(GOOD)[1]),
        "canonical form",
    ),
    "empty file": (b"", "truncated"),
    "pickle": (b"\x80\x04\x95" + b"\0" * 64, "not a mask file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(name, tmp_path):
    data, message = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with pytest.raises(MaskFileError, match=f"(?s)hostile.safetensors: .*({message})"):
        load_masks(path)


def test_unsorted_indices_are_refused():
    sparse = torch.ones(200, dtype=torch.bool)
    sparse[3] = sparse[90] = False
    data = encode(MaskSet({SPARSE: sparse}), META)
    swapped = data.replace(struct.pack("<II", 3, 90), struct.pack("<II", 90, 3))
    assert swapped != data
    with pytest.raises(MaskFileError, match=f"tensor '{SPARSE}': expected strictly increasing indices"):
        decode(swapped, "x")


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_mutations_give_an_answer_or_our_own_error(changes):
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    try:
        masks, meta = decode(bytes(data), "x")
    except MaskFileError:
        return
    assert encode(masks, meta) == bytes(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category": ""}, "'category'"),
        ({"licence": None}, "'licence'"),
        ({"concepts": ["a list"]}, "'concepts'.*tuple"),
        ({"config_sha256": "F" * 64}, "'config_sha256'"),
        ({"evaluation": {"x": object()}}, "'evaluation'"),
        ({"evaluation": {"x": float("inf")}}, "'evaluation'"),
        ({"evaluation": [1]}, "'evaluation'.*mapping"),
    ],
)
def test_bad_metadata_is_never_written(changes, message):
    with pytest.raises(MaskFileError, match=message):
        dataclasses.replace(META, **changes)


def test_what_does_not_fit_the_format_is_refused(tmp_path):
    with pytest.raises(MaskFileError, match="empty mask set"):
        save_masks(tmp_path / "m.safetensors", MaskSet({}), META)
    with pytest.raises(MaskFileError, match="header would be over 1048576 bytes"):
        save_masks(tmp_path / "m.safetensors", small_masks(), dataclasses.replace(META, method="x" * (1 << 20)))
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(MaskFileError, match=r"no.safetensors: cannot be read \(No such file"):
        load_masks(tmp_path / "no.safetensors")
    (tmp_path / "folder").mkdir()
    for target in ("no/m.safetensors", "folder"):
        with pytest.raises(MaskFileError, match="cannot be written"):
            save_masks(tmp_path / target, small_masks(), META)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
