"""Plans and locks of model folders that are only mapped: shards, damaged files, what is not as it was locked."""

import json
import os
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from safeflux.checkpoints.checkpoint import Checkpoint
from safeflux.cli import main
from safeflux.errors import ModelError, PolicyError
from safeflux.model.guard import guard
from safeflux.model.weights import fingerprint
from safeflux.plan.lock import read_lock
from tests.helpers.models import WEIGHTS
from tests.helpers.policies import BLADES, BOTH

FILE = "diffusion_pytorch_model.safetensors"
YAML = "apiVersion: safeflux/v1\nkind: Policy\nname: both\ncategories:\n  weapons: {masks: [blades]}\n"
SPIRITS = "apiVersion: safeflux/v1\nkind: Policy\nname: spirits\ncategories:\n  alcohol: {masks: [spirits]}\n"


@pytest.fixture(params=["one file", "shards"])
def folder(base_transformer, tmp_path, request):
    """A pipeline's folder with a transformer in one file, or in several."""
    size = "5GB" if request.param == "one file" else "40KB"
    base_transformer.save_pretrained(tmp_path / "model" / "transformer", max_shard_size=size)
    return tmp_path / "model"


def test_a_folder_is_planned_as_the_loaded_model_is(folder, base_transformer, store, tmp_path):
    found = Checkpoint.open(folder)
    assert found.fingerprint == fingerprint(base_transformer)
    inside = Checkpoint.open(folder / "transformer")
    assert inside.tensors.keys() == found.tensors.keys() == base_transformer.state_dict().keys()
    (tmp_path / "both.yaml").write_text(YAML)
    arguments = ["policy", "plan", str(tmp_path / "both.yaml"), str(folder), "--store", str(store)]
    told = json.loads(CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False).stdout)
    plan = guard(base_transformer, BLADES, store=store, dry_run=True).plan
    assert told["sites"] == {name: count.masked for name, count in plan.masks.counts.items() if count.masked}
    assert told["shares"]["weight"]["masked"] == plan.shares["weight"].masked
    text = CliRunner().invoke(main, arguments, catch_exceptions=False).stdout
    assert f"enforce  weapons      {plan.masks.count.masked:>9,} bits: blades (sha256:" in text


@pytest.mark.parametrize(
    ("break_", "message", "code"),
    [
        (lambda home: shutil.rmtree(home), "expected diffusion_pytorch_model.safetensors or .*index.json", 3),
        (lambda home: next(home.glob("*.safetensors")).unlink(), "names .*, which is missing|found neither", 3),
        (lambda home: truncate(next(home.glob("*.safetensors"))), "cannot be read as safetensors", 1),
        (
            lambda home: replace(next(home.glob("*.safetensors"))),
            "differ from the index|other base weights|not a FLUX",
            1,
        ),
    ],
    ids=["no folder", "a file missing", "truncated", "other tensors"],
)
def test_a_damaged_folder_is_one_clear_error(folder, store, tmp_path, break_, message, code):
    break_(folder / "transformer")
    (tmp_path / "both.yaml").write_text(YAML)
    result = CliRunner().invoke(
        main, ["policy", "plan", str(tmp_path / "both.yaml"), str(folder), "--store", str(store)]
    )
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")
    with pytest.raises(ModelError, match=message):
        raise ModelError(result.stderr)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def replace(path):
    save_file({"x": torch.zeros(2), **dict(list(load_file(path).items())[1:])}, path)


@pytest.mark.parametrize(
    "index", ["{", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../../x.safetensors"}}']
)
def test_a_damaged_index_is_one_clear_error(folder, index):
    (folder / "transformer" / f"{FILE}.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"index\.json: (cannot be read as an index)|is outside the folder"):
        Checkpoint.open(folder)


def test_a_diff_counts_the_bits_of_a_model_that_come_and_go(folder, store, tmp_path, make_masks):
    (tmp_path / "both.yaml").write_text(YAML)
    (tmp_path / "spirits.yaml").write_text(SPIRITS)
    paths = [str(tmp_path / f"{name}.yaml") for name in ("both", "spirits")]
    arguments = ["policy", "diff", *paths, "--model", str(folder), "--store", str(store)]
    told = json.loads(CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False).stdout)["bits"]
    blades, spirits = make_masks(1, WEIGHTS, 0.02), make_masks(2, ("ff", "mlp", "norm"))
    on = {kind: count.masked for kind, count in blades.counts_by_kind.items()}
    assert {kind: told[kind] for kind in WEIGHTS} == {kind: {"off": 0, "on": on[kind]} for kind in WEIGHTS}
    assert {kind: told[kind]["off"] for kind in ("ff", "mlp", "norm")} == {
        kind: count.masked for kind, count in spirits.counts_by_kind.items()
    }
    text = CliRunner().invoke(main, arguments, catch_exceptions=False).stdout
    assert f"  weight: 0 more bits are off, {on['weight']:,} are back on\n" in text


@pytest.fixture
def locked(folder, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "both.yaml").write_text(YAML)
    run = CliRunner().invoke(
        main, ["policy", "lock", "both.yaml", str(folder), "--store", str(store)], catch_exceptions=False
    )
    assert run.stdout == "both.lock.json: written\n"
    return tmp_path / "both.lock.json"


def test_a_lock_takes_what_was_locked_and_nothing_else(locked, transformer, other_transformer, store, bits_of):
    before = bits_of(transformer)
    with guard(transformer, "both.yaml", store=store, lock=locked) as handle:
        assert handle.verify().ok
    with pytest.raises(
        PolicyError,
        match=r"the policy is '.*' \(sha256.*, locked was 'both'.*; mask set 'spirits' is .*, locked was none\. If the",
    ):
        guard(transformer, BOTH, store=store, lock=locked)
    lock = read_lock(locked)
    lock.model_copy(update={"masks": {"blades": "0" * 64}}).write(locked)
    with pytest.raises(PolicyError, match=r"mask set 'blades' is sha256:.*, locked was sha256:000000000000"):
        guard(transformer, "both.yaml", store=store, lock=locked, dry_run=True)
    lock.model_copy(update={"base": fingerprint(other_transformer)}).write(locked)
    with pytest.raises(PolicyError, match="the base weights differ"):
        guard(transformer, "both.yaml", store=store, lock=locked, dry_run=True)
    assert bits_of(transformer) == before


def test_the_same_lock_gives_the_same_bytes_and_one_that_cannot_be_written_is_one_clear_error(locked, folder, store):
    before = locked.read_bytes()
    arguments = ["policy", "lock", "both.yaml", str(folder), "--store", str(store), "--out", "missing/lock.json"]
    assert "error: missing/lock.json: cannot be written" in CliRunner().invoke(main, arguments).stderr
    CliRunner().invoke(main, ["policy", "lock", "both.yaml", str(folder), "--store", str(store)])
    assert locked.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a lock file"),
        ("{}", "is not a lock file of this format: it lacks 'policy'"),
        ('{"format": "safeflux-lock/9"}', "is not a lock file of this format: format"),
    ],
)
def test_what_is_no_lock_is_one_clear_error(locked, text, message):
    locked.write_text(text)
    with pytest.raises(PolicyError, match=message):
        read_lock(locked)
    with pytest.raises(PolicyError, match="cannot be read"):
        read_lock("missing.json")


def test_a_lock_that_readers_could_disagree_on_or_that_is_a_pipe_is_refused(tmp_path):
    (tmp_path / "lock.json").write_text('{"policy": "a", "policy": "b"}')
    with pytest.raises(PolicyError, match=r"lock\.json: is not a lock file of this format: key 'policy' appears twice"):
        read_lock(tmp_path / "lock.json")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PolicyError, match=r"pipe: cannot be read \(not a regular file\)"):
        read_lock(tmp_path / "pipe")
