"""Mask files that are no files, or that claim more than they hold: refused at once, or handled in little memory."""

import os
import subprocess
import sys

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from safeflux.cli import main
from safeflux.errors import MaskFileError
from safeflux.masks.encoding import encode
from safeflux.masks.file import load_masks, save_masks
from safeflux.masks.mask_set import Change, MaskSet, compose, diff, overlap
from safeflux.masks.meta import MaskMeta
from safeflux.masks.packed import MAX_BITS, SPARSE, PackedMask, num_off_in_both

META = MaskMeta("weapons", ("dagger",), "tiny", "flux1", "sf1-x", "by hand", "0" * 64, "Apache-2.0")
SITE = "a.embed:weight"


def of_4_billion(off):
    return MaskSet({SITE: PackedMask(np.array(off, SPARSE), (1 << 16, 1 << 16))})


@pytest.fixture
def huge(tmp_path, make_meta):
    """Two files of some hundred bytes that name 2^32 weights each."""
    for name, off in (("one", []), ("two", [5, MAX_BITS - 1])):
        save_masks(tmp_path / f"{name}.safetensors", of_4_billion(off), make_meta())
        assert (tmp_path / f"{name}.safetensors").stat().st_size < 3000
    return tmp_path / "one.safetensors", tmp_path / "two.safetensors"


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from safeflux.cli import main
main(sys.argv[1:])
"""


def limited(*arguments):
    """Run a command that may take 1 GB of addresses in all."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is of Linux")
def test_a_small_file_that_names_4_billion_weights_takes_little_memory(huge, tmp_path):
    one, two = huge
    done = limited("mask", "diff", one, two)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"{one} -> {two}: 2 bits switched off, 0 back on")
    for command in (["show", one], ["show", two, "--json"], ["card", two]):
        assert limited("mask", *command).returncode == 0
    done = limited("mask", "compose", one, two, tmp_path / "both.safetensors", "--category", "weapons")
    assert (done.returncode, done.stderr) == (0, "")
    assert load_masks(tmp_path / "both.safetensors")[0] == of_4_billion([5, MAX_BITS - 1])
    assert limited("mask", "export", two, tmp_path / "two.json").returncode == 0


def test_an_export_that_would_not_fit_into_memory_is_refused(huge, tmp_path, monkeypatch):
    parts = ["MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "Active", "Inactive", "Shmem"]
    (tmp_path / "meminfo").write_text("".join(f"{part}: {1 << 22} kB\n" for part in parts))
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))  # where psutil is told to look
    done = CliRunner().invoke(main, ["mask", "export", str(huge[0]), str(tmp_path / "one.npz")])
    assert done.exit_code == 1
    assert "takes 8.6 GB of memory as npz, expected at most 2.1 GB" in done.stderr
    assert not (tmp_path / "one.npz").exists()


def pipe(path):
    os.mkfifo(path)


def sparse_200_gb(path):
    path.write_bytes(encode(of_4_billion([5]), META))
    os.truncate(path, 200 << 30)


def sparse_zeros(path):
    path.touch()
    os.truncate(path, 200 << 30)


NOT_FILES = {
    "a pipe": (pipe, "not a regular file"),
    "a mask and 200 GB": (
        sparse_200_gb,
        "expected at most 5368.*bytes for its sites, got 214748364800: trailing bytes",
    ),
    "200 GB of zeros": (sparse_zeros, "header: expected JSON"),
    "a folder": (lambda path: path.mkdir(), "not a regular file"),
}


@pytest.mark.parametrize("name", NOT_FILES)
def test_what_is_no_mask_file_is_refused_before_it_is_read(name, tmp_path):
    make, message = NOT_FILES[name]
    path = tmp_path / "mask.safetensors"
    make(path)
    with pytest.raises(MaskFileError, match=rf"mask\.safetensors: .*{message}"):
        load_masks(path)


def test_deep_json_in_a_mask_file_is_refused(tmp_path):
    data = encode(MaskSet({"b.ff:ff": np.arange(13) % 2 == 0}), META)
    size = int.from_bytes(data[:8], "little")
    deep = data[8 : 8 + size].decode().rstrip().replace('"evaluation":"{}"', f'"evaluation":"{"[" * 9000}"')
    deep += " " * (-len(deep) % 8)
    (tmp_path / "deep.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep.encode() + data[8 + size :])
    with pytest.raises(MaskFileError, match=r"metadata key 'evaluation': expected JSON.*levels deep"):
        load_masks(tmp_path / "deep.safetensors")
    inner: list = []
    for _ in range(5000):
        inner = [inner]
    with pytest.raises(MaskFileError, match="'evaluation': expected values that JSON can hold"):
        MaskMeta("weapons", ("dagger",), "tiny", "flux1", "sf1-x", "by hand", "0" * 64, "Apache-2.0", {"n": inner})


@pytest.mark.parametrize("shares", [(0.01, 0.02), (0.01, 0.5), (0.5, 0.01), (0.5, 0.3), (0.03, 0.03), (0, 0.03)])
@pytest.mark.parametrize("size", [1, 7, 8, 1000, 1003])
def test_masks_are_combined_packed_as_they_would_be_unpacked(shares, size):
    draw = np.random.default_rng(size)
    one, two = (draw.random(size) >= share for share in shares)
    a, b = (MaskSet({"x:ff": keep}) for keep in (one, two))
    assert num_off_in_both(a.bits["x:ff"], b.bits["x:ff"]) == np.count_nonzero(~one & ~two)
    both = compose(a, b, a)
    assert np.array_equal(both["x:ff"], one & two)
    assert both == MaskSet({"x:ff": one & two}), "in the same form"
    changed = Change(int(np.count_nonzero(one & ~two)), int(np.count_nonzero(two & ~one)))
    assert diff(a, b).get("x:ff", Change(0, 0)) == changed
    assert overlap(a, b).get("x:ff", 0) == np.count_nonzero(~one & ~two)
