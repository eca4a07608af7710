"""Models by folder, and by hub id in a cache as `hf download` leaves it."""

import pytest

from safeflux.disk.hub import local_folder
from safeflux.errors import ModelError

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A downloaded model, `org/model`, at one revision."""
    home = tmp_path / "models--org--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(REVISION)
    (home / "snapshots" / REVISION).mkdir(parents=True)
    (home / "snapshots" / REVISION / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_folder_is_itself_and_an_id_its_snapshot(cache):
    snapshot = cache / "models--org--model/snapshots" / REVISION
    assert local_folder(str(cache)) == cache
    assert local_folder("org/model") == local_folder(f"org/model@{REVISION}") == snapshot


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/other", "get it with: hf download org/other"),
        ("org/model@v2", "get it with: hf download org/model --revision v2"),
        ("/nowhere/at/all", "does not exist; expected a folder, or an id"),
    ],
)
def test_what_is_not_here_is_named_with_the_command_that_gets_it(cache, name, message):
    with pytest.raises(ModelError) as caught:
        local_folder(name)
    assert message in str(caught.value)
