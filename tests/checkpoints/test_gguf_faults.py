"""GGUF files that are damaged, or say what cannot be: one clear error each, soon, and nothing is written."""

import struct

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from safeflux.baking.bake import bake, check_bake
from safeflux.baking.verify import verify_files
from safeflux.checkpoints.checkpoint import Checkpoint
from safeflux.checkpoints.gguf_file import GgufFile
from safeflux.errors import ModelError, SafeFluxError
from safeflux.plan.status import State
from tests.helpers.ggufs import write_gguf
from tests.helpers.layouts import to_bfl
from tests.helpers.policies import BLADES, SPIRITS

NAME = b"img_in.weight"


@pytest.fixture
def source(base_transformer, tmp_path):
    return write_gguf(tmp_path / "flux.gguf", to_bfl(base_transformer), GGMLQuantizationType.Q8_0)


def entry(data, name=NAME):
    """Where the header says of a tensor: the number of its axes, their sizes, its type, its offset."""
    found = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    return found, found + 4, found + 20, found + 24


def put(data, place, form, value):
    size = struct.calcsize(form)
    return data[:place] + struct.pack(form, value) + data[place + size :]


SPOILT = {
    "empty": (lambda data: b"", "does not end within 0 bytes"),
    "no magic": (lambda data: b"GGML" + data[4:], "does not begin with GGUF"),
    "big endian": (lambda data: put(data, 4, ">I", 3), "expected version 2 or 3, got 50331648"),
    "version 1": (lambda data: put(data, 4, "<I", 1), "expected version 2 or 3, got 1"),
    "too many tensors": (lambda data: put(data, 8, "<Q", 2**63), "does not end within|metadata|axes|codec"),
    "too many entries": (lambda data: put(data, 16, "<Q", 2**60), "does not end within|unknown type|codec"),
    "a text of no end": (lambda data: put(data, 24, "<Q", 2**62), "does not end within"),
    "an array of no end": (
        lambda data: put(data, data.index(b"numbers") + 15, "<Q", 2**61),
        "does not end within",
    ),
    "a key twice": (lambda data: data.replace(b"letters", b"numbers"), "metadata key 'numbers' appears twice"),
    "an unknown type of metadata": (lambda data: put(data, data.index(b"numbers") + 7, "<I", 13), "unknown type 13"),
    "an alignment of three": (
        lambda data: put(data, data.index(b"general.alignment") + 21, "<I", 3),
        r"general\.alignment: expected a power of two",
    ),
    "an alignment past the end": (
        lambda data: put(data, data.index(b"general.alignment") + 21, "<I", 2**31),
        "does not end within",
    ),
    "too many axes": (lambda data: put(data, entry(data)[0], "<I", 5), "expected at most 4 axes, got 5"),
    "a size past the end": (lambda data: put(data, entry(data)[1] + 8, "<Q", 2**40), r"'img_in.weight' ends at byte"),
    "an empty tensor": (
        lambda data: put(data, entry(data, b"single_blocks.0.modulation.lin.bias")[1], "<Q", 0),
        r"flux\.gguf: tensor 'single_transformer_blocks\.0\.norm\.linear\.bias' is empty",
    ),
    "an unknown type": (
        lambda data: put(data, entry(data)[2], "<I", 99),
        r"flux\.gguf: tensor 'img_in\.weight': the package gguf does not know its type 99; update the package, or",
    ),
    "a type of other blocks": (
        lambda data: put(data, entry(data)[2], "<I", GGMLQuantizationType.Q4_K),
        r"'img_in\.weight': rows of shape \(32, 16\) are not whole blocks of 256, as Q4_K needs",
    ),
    "an offset beyond the end": (lambda data: put(data, entry(data)[3], "<Q", 2**50), "'img_in.weight' ends at byte"),
    "an odd offset": (lambda data: put(data, entry(data)[3], "<Q", 33), "does not begin at a multiple of 32"),
    "an overlap": (lambda data: put(data, entry(data)[3], "<Q", 32), "tensors '.*' and '.*' overlap"),
    "a name twice": (lambda data: data.replace(b"img_in.weight", b"txt_in.weight"), "two tensors have the same name"),
    "a name that is no text": (lambda data: data.replace(NAME, b"\xff" * len(NAME)), "codec can't decode"),
    "truncated in the header": (lambda data: data[:2000], "does not end within 2000 bytes"),
    "truncated in the data": (lambda data: data[:-1000], "ends at byte"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT.keys())
def test_a_damaged_file_is_one_clear_error_and_nothing_is_written(source, store, tmp_path, spoil, message):
    source.write_bytes(spoil(source.read_bytes()))
    target = tmp_path / "guarded.gguf"
    target.write_bytes(b"mine")
    with pytest.raises(ModelError, match=message) as caught:
        bake(source, target, SPIRITS, store=store, overwrite=True)
    assert str(caught.value).startswith(str(source))
    assert "\n" not in str(caught.value)
    assert target.read_bytes() == b"mine"
    assert {path.name for path in tmp_path.iterdir()} == {"flux.gguf", "guarded.gguf", "store"}


def test_a_file_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(ModelError, match=r"missing\.gguf: does not exist"):
        Checkpoint.open(tmp_path / "missing.gguf")


def test_a_guarded_file_is_refused_as_source(source, store, tmp_path):
    bake(source, tmp_path / "once.gguf", BLADES, store=store)
    with pytest.raises(ModelError, match=r"once\.gguf: is already guarded.*Bake from the base model"):
        bake(tmp_path / "once.gguf", tmp_path / "twice.gguf", SPIRITS, store=store)
    assert not (tmp_path / "twice.gguf").exists()


def spoilt(source, count):
    """Write the file again and again, each time with one to three other bytes in its header, which is yielded."""
    data = source.read_bytes()
    size = 8 + sum(map(len, GgufFile.open(source).parts))
    draw = np.random.default_rng(0)
    for _ in range(count):
        header = np.frombuffer(data[:size], np.uint8).copy()
        header[draw.integers(0, size, draw.integers(1, 4))] = draw.choice([draw.integers(0, 256), 0, 255, 128, 1])
        source.write_bytes(header.tobytes() + data[size:])
        yield header.tobytes()


def test_thousands_of_spoilt_headers_are_read_as_they_are_or_refused(source):
    refused = 0
    for header in spoilt(source, 4000):
        try:
            found = GgufFile.open(source)
        except ModelError:
            refused += 1
        else:
            size = 8 + sum(map(len, found.parts))
            assert found.header_with({})[:size] == header[:size]
            assert all(one.start + one.nbytes <= found.num_bytes for one in found.tensors.values())
    assert 1000 < refused < 3900


def test_what_is_baked_of_a_spoilt_file_is_guarded_and_else_there_is_nothing(source, store, tmp_path):
    made = 0
    for _ in spoilt(source, 400):
        target = tmp_path / "guarded.gguf"
        try:
            bake(source, target, SPIRITS, store=store)
        except SafeFluxError:
            assert not target.exists()
        else:
            made += 1
            check_bake(source, target, SPIRITS, store=store)
            assert verify_files(target, SPIRITS, store=store).status.state is State.GUARDED
            target.unlink()
    assert 4 < made < 200
