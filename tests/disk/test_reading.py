"""Files as they are found: pipes are refused at once, links are followed, dangling ones are errors, edits are seen."""

import os
import socket

import pytest

from safeflux.disk.reading import look_through, open_regular, read_regular, states_of
from safeflux.errors import ModelError


def test_a_pipe_a_device_and_a_folder_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(200 << 30)
    with pytest.raises(OSError, match=f"it has {200 << 30} bytes, expected at most 10"):
        read_regular(tmp_path / "large", 10)
    (tmp_path / "small").write_bytes(b"0123456789")
    assert read_regular(tmp_path / "small", 10) == b"0123456789"


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "model"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "a").write_text("a")
    (root / "again").symlink_to("inner")
    (root / ".hidden").write_text("h")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "b").write_text("b")
    (root / "out").symlink_to("../shared")
    return root


def test_links_are_followed_and_those_that_lead_out_are_named(tree):
    found = look_through(tree)
    assert [str(path) for path in found.files] == ["again/a", "inner/a", "out/b"]
    assert {str(a): b for a, b in found.leading_out.items()} == {"out": tree.parent / "shared"}
    assert ".hidden" in map(str, look_through(tree, hidden=True).files)


def test_what_cannot_be_copied_is_an_error_that_names_it(tree):
    (tree / "inner" / "gone").symlink_to("nowhere")
    with pytest.raises(ModelError, match=r"(inner|again)/gone: is a link to nowhere, which does not exist"):
        look_through(tree)
    (tree / "inner" / "gone").unlink()
    (tree / "inner" / "round").symlink_to("..")
    with pytest.raises(ModelError, match=r"round: is a link to a folder that contains it"):
        look_through(tree)
    (tree / "inner" / "round").unlink()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(tree / "socket"))
        with pytest.raises(ModelError, match=r"socket: expected a file or a folder"):
            look_through(tree)


EDITS = {
    "content": lambda path: path.write_text("longer"),
    "content of the same size": lambda path: path.write_text("x"),
    "another file": lambda path: (path.with_name("n").write_text("a"), os.replace(path.with_name("n"), path)),
    "one more file": lambda path: path.with_name("more").write_text("m"),
    "one file less": lambda path: path.unlink(),
}


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_changes_the_state(tree, edit):
    path = tree / "inner" / "a"
    os.utime(path, ns=(0, 0))
    before = states_of(tree)
    assert states_of(tree) == before
    EDITS[edit](path)
    assert states_of(tree) != before
