"""Models by folder, and by hub id in a cache as `hf download` leaves it."""

import json
import os
import subprocess
import sys

import pytest

REVISION = "0123456789abcdef0123456789abcdef01234567"
HERE = ("org/model", f"org/model@{REVISION}")
MISSING = {
    "org/other": "get it with: hf download org/other",
    "org/model@v2": "get it with: hf download org/model --revision v2",
    "/nowhere/at/all": "does not exist; expected a folder, or an id",
}
ASK = """
import json, sys
from safeflux.disk.hub import local_folder
from safeflux.errors import ModelError
for name in sys.argv[1:]:
    try:
        print(json.dumps(str(local_folder(name))))
    except ModelError as error:
        print(json.dumps(f"error: {error}"))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A downloaded model, `org/model`, at one revision."""
    folder = tmp_path_factory.mktemp("hub")
    home = folder / "models--org--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(REVISION)
    (home / "snapshots" / REVISION).mkdir(parents=True)
    (home / "snapshots" / REVISION / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def answers(cache):
    """Name -> the answer, in a process whose environment names the cache, which the library reads once."""
    names = [str(cache), *HERE, *MISSING]
    environment = os.environ | {"HF_HUB_CACHE": str(cache)}
    command = [sys.executable, "-c", ASK, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=True))


def test_a_folder_is_itself_and_an_id_its_snapshot(cache, answers):
    assert answers[str(cache)] == str(cache)
    assert {answers[name] for name in HERE} == {str(cache / "models--org--model/snapshots" / REVISION)}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_not_here_is_named_with_the_command_that_gets_it(answers, name):
    assert answers[name].startswith("error: ")
    assert MISSING[name] in answers[name]
