"""Stores on the hub: pinned to a commit, downloaded once, and found without a network afterwards."""

import hashlib
import json
import os
import socket
import subprocess
import sys

from safeflux.model.weights import fingerprint
from tests.helpers.hub import COMMIT, serve_hub

HERE = f"hf://org/masks@{COMMIT}"
OTHER = f"hf://org/masks@{COMMIT[::-1]}"
REFUSED = {
    "hf://org/masks": "with the 40 digits of a commit, got none; commits are listed by: git ls-remote",
    "hf://org/masks@main": "got 'main', which can move",
    "hf://masks": "expected hf://ORG/NAME@COMMIT",
    f"hf://org/nothing@{COMMIT}": "the hub refuses it",
    OTHER: "the hub refuses it",
}
ASK = """
import ast, json, sys, time
from safeflux.disk import hub
from safeflux.errors import StoreError
from safeflux.masks.store import open_store
patience, base, *addresses = sys.argv[1:]
hub._PATIENCE = ast.literal_eval(patience) or hub._PATIENCE
def sleep(seconds):
    raise SystemExit(f"the library waits {seconds} s before it tries again")
time.sleep = sleep
for address in addresses:
    try:
        found = open_store(open_store([address]), ["key.pem"]).find("blades", base)
        print(json.dumps([found.sha256, found.address, str(found.path)]))
    except StoreError as error:
        print(json.dumps(str(error)))
"""


POLICY = "apiVersion: safeflux/v1\nkind: Policy\nname: own\ncategories:\n  weapons: {masks: [blades]}\n"


def run(endpoint, folder, *command, **more):
    """A process of its own, in a folder: huggingface_hub reads its environment once."""
    cache = {"HF_HUB_CACHE": str(folder / "cache"), "HF_HUB_DISABLE_XET": "1"}
    environment = os.environ | {"HF_ENDPOINT": endpoint, **cache, **more}
    return subprocess.run([sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True)


def ask(endpoint, folder, base, *addresses, patience="()", **more):
    """What `ASK` prints."""
    done = run(endpoint, folder, "-c", ASK, patience, base, *addresses, **more)
    assert done.returncode == 0, done.stderr
    return list(map(json.loads, done.stdout.splitlines()))


NAMED = POLICY + f"stores: [{HERE!r}]\n"
GUARD = """
import sys
from diffusers import FluxTransformer2DModel
from safeflux import PolicyPool, guard
model = FluxTransformer2DModel.from_pretrained("model")
handle = guard(model, "named.yaml")
print(handle.verify(deep=True).state, handle.plan.categories["weapons"].stored[0].address)
handle.undo()
print(PolicyPool(model, {"one": "named.yaml"}).verify().state)
"""


def test_a_policy_names_the_repository_of_its_masks(store, base_transformer, tmp_path):
    base_transformer.save_pretrained(tmp_path / "model")
    (tmp_path / "named.yaml").write_text(NAMED)
    (tmp_path / "wrong.yaml").write_text(NAMED.replace("weapons:", "alcohol:"))
    (tmp_path / "test.yaml").write_text(
        "apiVersion: safeflux/v1\nkind: PolicyTest\npolicy: named.yaml\nexpect: {erases: [weapons]}\n"
    )
    masks = {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*.safetensors")}
    safeflux = ("-m", "safeflux", "policy")
    with serve_hub({"org/masks": masks}) as (endpoint, _):
        guarded = run(endpoint, tmp_path, "-c", GUARD)
        checked = run(endpoint, tmp_path, *safeflux, "check", "named.yaml", "wrong.yaml", "--json")
    assert guarded.stdout.split() == ["GUARDED", HERE, "GUARDED"], guarded.stderr
    named, wrong = json.loads(checked.stdout)["policies"]
    assert named["ok"]
    assert "erase" in wrong["issues"][0]["message"]
    offline = {"HF_HUB_OFFLINE": "1"}
    tested = run("http://127.0.0.1:9", tmp_path, *safeflux, "test", "test.yaml", **offline)
    explained = run("http://127.0.0.1:9", tmp_path, *safeflux, "explain", "named.yaml", **offline)
    locked = run(
        "http://127.0.0.1:9", tmp_path, *safeflux, "lock", "named.yaml", "model", "--out", "own.lock", **offline
    )
    assert (tested.returncode, explained.returncode, locked.returncode) == (0, 0, 0), tested.stdout + locked.stderr
    assert HERE in explained.stdout
    assert json.loads((tmp_path / "own.lock").read_text())["stores"] == [HERE]


def test_masks_are_downloaded_once_and_stay_without_the_hub(store, base_transformer, tmp_path):
    base = fingerprint(base_transformer)
    base_transformer.save_pretrained(tmp_path / "model")
    (tmp_path / "own.yaml").write_text(POLICY)
    masks = {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*.safetensors")}
    with serve_hub({"org/masks": {**masks, "weights.bin": b"pickle"}}) as (endpoint, asked):
        found, *refused = ask(endpoint, tmp_path, base, HERE, *REFUSED)
        lock = ("policy", "lock", "own.yaml", "model", "--store", HERE, "--out", "own.lock")
        locked = run(endpoint, tmp_path, "-m", "safeflux", *lock)
    sha256 = hashlib.sha256(masks["tiny-flux/blades.safetensors"]).hexdigest()
    assert found[:2] == [sha256, HERE]
    for answer, expected in zip(refused, REFUSED.values(), strict=True):
        assert expected in answer
    assert locked.returncode == 0, locked.stderr
    assert json.loads((tmp_path / "own.lock").read_text()) | {"policy": 0, "base": 0} == {
        "format": "safeflux-lock/1",
        "policy": 0,
        "base": 0,
        "masks": {"blades": sha256},
        "stores": [HERE],
    }
    assert not any("weights.bin" in path for path in asked)
    assert sum(path.endswith("blades.safetensors") for path in asked) <= 2  # its head, and itself
    command = f"hf download org/masks --revision {COMMIT[::-1]}"
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        again, other = ask(endpoint, tmp_path, base, HERE, OTHER, **more)
        assert again == found
        assert f"cannot be reached, and this commit is not on this machine; get it with: {command}" in other


def test_a_hub_that_takes_its_time_is_waited_for_and_one_that_never_answers_is_not(store, base_transformer, tmp_path):
    base = fingerprint(base_transformer)
    masks = {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*.safetensors")}
    with serve_hub({"org/masks": masks}, first_after=4) as (endpoint, _):  # longer than it may take to connect
        ((sha256, *_),) = ask(endpoint, tmp_path, base, HERE)
    assert sha256 == hashlib.sha256(masks["tiny-flux/blades.safetensors"]).hexdigest()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (other,) = ask(endpoint, tmp_path, base, OTHER, patience="(1, 1, 1, 1)")
    assert "cannot be reached" in other
